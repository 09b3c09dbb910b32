r"""Captions to the words that NLTK's `word_tokenize` makes of them, as a `tokenizer.json` that needs no NLTK.

The released checkpoints were trained on `word_tokenize(str(caption).lower())`: the Punkt model for English cuts sentences, then
NLTK's word tokenizer puts spaces around what is a word of its own, rule after rule, and splits at white space. Each rule
stands here as a normaliser that inserts spaces (or borders) at places given by a regular expression, in NLTK's order; every
other character keeps its offset. docs/tokenisation.md lists what differs.

A place is an expression of width zero. Two characters that Unicode sets aside for a program's own use mark places in the
text for the rules that follow: CUT between two sentences, where NLTK has the ends of strings, and STOP behind a word that
ends a sentence. Non-ASCII characters are written as \uXXXX: the library's `repr` panics if it cuts a pattern in one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.normalizers import Normalizer, Replace

from camp_sdk.export.network.vocabulary import SPECIALS, word_tokenizer
from camp_sdk.runtime.errors import InputError

# What Punkt learned of English: words written with a period. Its other tables decide by capitals, and the text has none.
# fmt: off
ABBREVIATIONS = (
    ". . ", "a.a", "a.c", "a.d", "a.g", "a.h", "a.m", "a.m.e", "a.s", "a.t", "adm", "ala", "ariz", "aug", "ave",
    "b.f", "b.v", "bros", "c", "c.i.t", "c.o.m.b", "c.v", "calif", "chg", "cie", "co", "col", "colo", "conn",
    "corp", "cos", "ct", "d", "d.c", "d.h", "d.w", "dec", "dr", "e", "e.f", "e.h", "e.l", "e.m", "f", "f.g", "f.j",
    "feb", "fla", "fri", "ft", "g", "g.d", "g.f", "g.k", "ga", "gen", "h", "h.c", "h.f", "h.m", "i.m.s", "ill",
    "inc", "j.b", "j.c", "j.j", "j.k", "j.p", "j.r", "jan", "jr", "k", "kan", "ky", "l", "l.a", "l.f", "l.p", "lt",
    "ltd", "m", "m.b.a", "m.d.c", "m.j", "maj", "messrs", "mg", "mich", "minn", "mr", "mrs", "ms", "n", "n.c",
    "n.d", "n.h", "n.j", "n.m", "n.v", "n.y", "nev", "nov", "oct", "ok", "okla", "ore", "p", "p.a.m", "p.m", "pa",
    "ph.d", "prof", "r", "r.a", "r.h", "r.i", "r.j", "r.k", "r.t", "rep", "reps", "s", "s.a", "s.a.y", "s.c", "s.g",
    "s.p.a", "s.s", "sen", "sep", "sept", "sr", "st", "sw", "t", "t.j", "tenn", "tues", "u.k", "u.n", "u.s",
    "u.s.a", "u.s.s.r", "v", "va", "vs", "vt", "w", "w.c", "w.r", "w.va", "w.w", "wash", "wed", "wis", "yr",
)
# fmt: on
CONTRACTIONS = (
    ("can", "not"),
    ("d", "'ye"),
    ("gim", "me"),
    ("gon", "na"),
    ("got", "ta"),
    ("lem", "me"),
    ("more", "'n"),
)

CUT, STOP = r"\uFDD0", r"\uFDD1"
BEGIN, FINISH = rf"(?:\A|{CUT})", rf"(?:\z|{CUT})"
SPACE = r"[\s\x1c-\x1f]"  # Python splits at the four separators, which have not the property White_Space
LETTER = r"[\w\u200c\u200d]"  # in brackets: outside, the library's \w takes fractions and superscripts too

# Look-behind is bounded, or a long query of nothing but marks takes time in the square of its length.
FEW, MANY, LONG = "{0,9}", "{0,40}", "{0,99}"
ALONE = r"[)\";}\]*:@'({\[\u2018\u2019\u201c\u201d\u00ab\u00bb?!]"  # ends a word of Punkt's
WORD_BEGIN = rf"(?:\A|[\s(\"{{\[:;*@)}}\]]|\.\.|--)[`&#,\-]{FEW}"
WORD_END = rf"(?=,?(?:\s|\z|{ALONE}|--|\.\.))"
CLOSERS = r"[\])}>\"'\u00bb\u201d\u2019 ]*\s*"


def nltk_tokenizer(vocabulary: Mapping[str, int]) -> Tokenizer:
    """The tokenizer of a released checkpoint: `word_tokenize` of the lower-cased text, then the index of each word.

    vocabulary: word to index, with `<pad>` 0, `<start>` 1, `<end>` 2, `<unk>` 3. Words it does not hold are `<unk>`; text is
    cut at 47 words and wrapped in `<start>` ... `<end>`. Raises InputError if the four stand elsewhere.
    """
    found = {word: vocabulary.get(word) for word in SPECIALS}
    if list(found.values()) != [0, 1, 2, 3]:
        raise InputError(
            f"the vocabulary has {found}: expected the indices 0 to 3; pass the one the checkpoint came with"
        )
    rules = (lower_case, sentences, opening_quotes, punctuation, closing_quotes, contractions)
    normaliser = normalizers.Sequence([step for rule in rules for step in rule()])
    return word_tokenizer(vocabulary, normaliser, pre_tokenizers.Split(Regex(f"{SPACE}+"), "removed"))


def lower_case() -> list[Normalizer]:
    """As `str.lower`, which also knows the sigma at the end of a word; white space at the end of the text goes."""
    between = rf"\p{{Case_Ignorable}}{FEW}"
    last_sigma = rf"(?<=\p{{Cased}}{between})\u03a3(?!{between}\p{{Cased}})"
    return [Replace(Regex(last_sigma), "\u03c2"), normalizers.Lowercase(), Replace(Regex(rf"{SPACE}+\z"), "")]


def sentences() -> list[Normalizer]:
    """Puts CUT between sentences, in place of the white space there."""
    return [
        Replace(Regex(f"{stops()}{WORD_END}"), "\ufdd1"),
        Replace(Regex(rf"{cuts()}\s*"), "\ufdd0"),
        Replace("\ufdd1", ""),
    ]


def stops() -> str:
    """Behind `?`, `!`, and a word's period, unless the word is an abbreviation, or may be an initial or ordinal.

    An initial or ordinal is one before a lower-case word or a mark; Punkt's exceptions need capitals.
    """
    abbreviation = rf"(?:{WORD_BEGIN}|-)(?:{'|'.join(map(re.escape, ABBREVIATIONS))})"
    initial_or_ordinal = rf"{WORD_BEGIN}(?:[^\W\d]|\.?\d[\d,.\-]{{0,30}})"
    goes_on = rf"\.(?:[?!]|\s*(?:\p{{Lower}}|[;:,]|[?!]{WORD_END}|\.(?!\.){WORD_END}))"
    period = rf"(?<!\.)(?<!{abbreviation})(?:(?<!{initial_or_ordinal})|(?!{goes_on}))\.(?!\.)"
    return rf"(?:[?!]|{period})\K"


def cuts() -> str:
    """Behind the last `.`, `?` or `!` in a run of non-spaces, and the quotes and brackets that close there.

    Punkt decides once for each such run: it cuts if any word in the run so far stops, or one inside the next run does. A mark
    that is the first character of its run is decided on by itself.
    """
    mark, run = rf"[.?!]{STOP}?", rf"[^ \t-\r]{LONG}"  # here Punkt knows the white space of ASCII only
    candidate = rf"{mark}(?={ALONE}|\s+\S)"
    first = rf"(?:\A|[\s\S][ \t-\r]){mark}"  # a single space at the beginning of the text, Punkt overlooks
    last = rf"(?:(?!{run}{mark}(?:{ALONE}|\s+\S))|(?<={first}))"
    stopped = rf"(?:(?<={STOP}{run})|(?=\s+\S{LONG}{STOP}\S))"
    closing = r"(?:\s*[\"')\]}\u2018\u2019\u201c\u201d\u00ab\u00bb]+(?=\s|--|\z))?"
    return rf"{candidate}{last}{stopped}{closing}\K"


def opening_quotes() -> list[Normalizer]:
    """Spaces around opening quotes; straight ones become two backticks; an apostrophe before a word stands apart."""
    clitic = rf"(?:re|ve|ll|m|t|s|d|n)(?!{LETTER})"
    return [
        insert_space(*around(r"\u00ab\u201c\u2018\u201e"), "(?<!`)(?=`)", "(?<=`)(?!`)"),
        Replace(Regex(rf'(?<={BEGIN})"'), "``"),
        insert_space(*around_pairs("`")),
        Replace(Regex(r"""(?<=[ (\[{<])(?:"|'')"""), " `` "),
        insert_space(rf"(?<!{LETTER})'\K(?!{clitic})(?={LETTER})"),
    ]


def punctuation() -> list[Normalizer]:
    """Spaces around the sentence's last period, commas and colons but those before digits, and what always stands apart."""
    odd = rf"(?<=(?:\A|[^:,])(?:[:,][:,]){MANY}"  # NLTK's rule eats two characters, so of a run only every other mark
    not_digit = rf"(?=[^\d{CUT}])"
    return [
        insert_space(
            rf"(?=\.{CLOSERS}{FINISH})(?<=[^.{CUT}])",
            rf"(?<=[^.{CUT}]\.)(?={CLOSERS}{FINISH})",
        ),
        insert_space(
            rf"(?=[:,][^\d{CUT}]){odd})",
            rf"(?<=[:,]){not_digit}{odd}[:,])",
            rf"(?=[:,]{FINISH})",
            rf"(?<=[:,])(?={FINISH})",
            r"(?=\.\.)(?<!\.)",
            r"(?<=\.\.)(?!\.)",
            *around(r";@#$%&\u2012-\u2015?!"),
        ),
        insert_space(rf"(?=' )(?<=[^'{CUT}])"),
        insert_space(*around(r"*\[\](){}<>\u00bb\u201d\u2019")),
        insert_space(*around_pairs("-")),
    ]


def closing_quotes() -> list[Normalizer]:
    """Spaces around what quotes are left, which close; clitics leave their word. The sentences are joined."""
    return [
        Replace(Regex(rf"\A|\z|{CUT}"), " "),
        insert_space(*around_pairs("'")),
        Replace('"', " '' "),
        insert_space(r"(?='[smd]?\s)(?<=[^'\s])"),
        insert_space(r"(?=(?:'ll|'re|'ve|n't)\s)(?<=[^'\s])"),
    ]


def contractions() -> list[Normalizer]:
    """Words written as one come apart: `cannot`, `gonna`, and `wanna` before white space."""
    whole = "|".join(first + second for first, second in CONTRACTIONS)
    inside = [rf"(?<=\b{first})(?={second}\b)" for first, second in CONTRACTIONS]
    return [
        insert_space(
            rf"\b(?=(?:{whole})\b)", rf"(?<=\b(?:{whole}))\b", *inside, r"\b(?=wanna\s)", r"(?<=\bwan)(?=na\s)"
        ),
        insert_space(r"(?<=\s't)(?=(?:is|was)\b)", r"(?<=\s't(?:is|was))\b"),
    ]


def insert_space(*places: str) -> Normalizer:
    """Inserts a space at each of the places: inserting, unlike replacing, leaves every character its offset."""
    return Replace(Regex("|".join(places)), " ")


def around(characters: str) -> tuple[str, str]:
    """The places before and behind each of the characters."""
    return f"(?=[{characters}])", f"(?<=[{characters}])"


def around_pairs(mark: str) -> tuple[str, str]:
    """The places before and behind two of a mark, counted from the beginning of a run; runs of up to 80 marks."""
    run = rf"(?<=(?:\A|[^{mark}])(?:{mark}{mark})"
    return f"(?={mark}{mark}){run}{MANY})", f"{run}{{1,40}})"
