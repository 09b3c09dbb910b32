r"""NLTK's `word_tokenize` as a `tokenizer.json` that needs no NLTK.

The released checkpoints were trained on `word_tokenize(str(caption).lower())`. In NLTK, the Punkt model for English
splits the text into sentences. A word tokenizer then applies rule after rule to insert spaces around separate words,
and splits at white space. Here, each rule is a normaliser that inserts spaces or marks at places given by a regular
expression, in NLTK's order. Every other character keeps its offset. docs/tokenisation.md lists the differences.

A place is a regular expression that matches zero characters. Two characters that Unicode reserves for internal use mark
places for later rules: CUT stands between two sentences, where NLTK has the ends of strings, and STOP stands after a
word that ends a sentence. Non-ASCII characters are written as \uXXXX, because the library's `repr` panics when it
truncates a pattern inside one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.normalizers import Normalizer, Replace

from camp_sdk.export.network.vocabulary import SPECIALS, word_tokenizer
from camp_sdk.runtime.errors import InputError

# The abbreviations in Punkt's model of English. Its other tables depend on capitals, which the lower-cased text lacks.
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
SPACE = r"[\s\x1c-\x1f]"  # Python splits at these four separators, which lack the property White_Space
LETTER = r"[\w\u200c\u200d]"  # in brackets: outside, the library's \w also matches fractions and superscripts

# Look-behind is bounded: otherwise a long query of nothing but marks takes time quadratic in its length.
FEW, MANY, LONG = "{0,9}", "{0,40}", "{0,99}"
ALONE = r"[)\";}\]*:@'({\[\u2018\u2019\u201c\u201d\u00ab\u00bb?!]"  # ends a word in Punkt
WORD_BEGIN = rf"(?:\A|[\s(\"{{\[:;*@)}}\]]|\.\.|--)[`&#,\-]{FEW}"
WORD_END = rf"(?=,?(?:\s|\z|{ALONE}|--|\.\.))"
CLOSERS = r"[\])}>\"'\u00bb\u201d\u2019 ]*\s*"


def nltk_tokenizer(vocabulary: Mapping[str, int]) -> Tokenizer:
    """The tokenizer of a released checkpoint: `word_tokenize` of the lower-cased text, then the index of each word.

    Text is truncated to 47 words and wrapped in `<start>` ... `<end>`.

    Args:
        vocabulary: word to index, with `<pad>` 0, `<start>` 1, `<end>` 2 and `<unk>` 3. Other words become `<unk>`.

    Raises:
        InputError: the vocabulary has these four words at other indices.
    """
    found = {word: vocabulary.get(word) for word in SPECIALS}
    if list(found.values()) != [0, 1, 2, 3]:
        raise InputError(
            f"the vocabulary has {found}: expected the indices 0 to 3; pass the vocabulary of the checkpoint"
        )
    rules = (lower_case, sentences, opening_quotes, punctuation, closing_quotes, contractions)
    normaliser = normalizers.Sequence([step for rule in rules for step in rule()])
    return word_tokenizer(vocabulary, normaliser, pre_tokenizers.Split(Regex(f"{SPACE}+"), "removed"))


def lower_case() -> list[Normalizer]:
    """Lower-case as `str.lower` does, including the final sigma, and remove white space at the end of the text."""
    between = rf"\p{{Case_Ignorable}}{FEW}"
    last_sigma = rf"(?<=\p{{Cased}}{between})\u03a3(?!{between}\p{{Cased}})"
    return [Replace(Regex(last_sigma), "\u03c2"), normalizers.Lowercase(), Replace(Regex(rf"{SPACE}+\z"), "")]


def sentences() -> list[Normalizer]:
    """Replace the white space between sentences with CUT."""
    return [
        Replace(Regex(f"{stops()}{WORD_END}"), "\ufdd1"),
        Replace(Regex(rf"{cuts()}\s*"), "\ufdd0"),
        Replace("\ufdd1", ""),
    ]


def stops() -> str:
    """The places after `?`, `!`, and a word's period, unless the word is an abbreviation, an initial or an ordinal.

    A word counts as an initial or ordinal before a lower-case word or a mark. Punkt's exceptions to this need capitals.
    """
    abbreviation = rf"(?:{WORD_BEGIN}|-)(?:{'|'.join(map(re.escape, ABBREVIATIONS))})"
    initial_or_ordinal = rf"{WORD_BEGIN}(?:[^\W\d]|\.?\d[\d,.\-]{{0,30}})"
    goes_on = rf"\.(?:[?!]|\s*(?:\p{{Lower}}|[;:,]|[?!]{WORD_END}|\.(?!\.){WORD_END}))"
    period = rf"(?<!\.)(?<!{abbreviation})(?:(?<!{initial_or_ordinal})|(?!{goes_on}))\.(?!\.)"
    return rf"(?:[?!]|{period})\K"


def cuts() -> str:
    """The places after the last `.`, `?` or `!` in a run of non-spaces and the closing quotes and brackets there.

    Punkt decides once for each run: it cuts if a word ends a sentence in the run so far, or inside the next run. A mark
    that is the first character of its run gets its own decision.
    """
    mark, run = rf"[.?!]{STOP}?", rf"[^ \t-\r]{LONG}"  # here Punkt recognises only ASCII white space
    candidate = rf"{mark}(?={ALONE}|\s+\S)"
    first = rf"(?:\A|[\s\S][ \t-\r]){mark}"  # Punkt ignores a single space at the beginning of the text
    last = rf"(?:(?!{run}{mark}(?:{ALONE}|\s+\S))|(?<={first}))"
    stopped = rf"(?:(?<={STOP}{run})|(?=\s+\S{LONG}{STOP}\S))"
    closing = r"(?:\s*[\"')\]}\u2018\u2019\u201c\u201d\u00ab\u00bb]+(?=\s|--|\z))?"
    return rf"{candidate}{last}{stopped}{closing}\K"


def opening_quotes() -> list[Normalizer]:
    """Insert spaces around opening quotes and after an apostrophe before a word. Straight quotes become backticks."""
    clitic = rf"(?:re|ve|ll|m|t|s|d|n)(?!{LETTER})"
    return [
        insert_space(*around(r"\u00ab\u201c\u2018\u201e"), "(?<!`)(?=`)", "(?<=`)(?!`)"),
        Replace(Regex(rf'(?<={BEGIN})"'), "``"),
        insert_space(*around_pairs("`")),
        Replace(Regex(r"""(?<=[ (\[{<])(?:"|'')"""), " `` "),
        insert_space(rf"(?<!{LETTER})'\K(?!{clitic})(?={LETTER})"),
    ]


def punctuation() -> list[Normalizer]:
    """Insert spaces around the last period of a sentence, around commas and colons, and around other punctuation.

    Commas and colons before a digit stay as they are.
    """
    odd = rf"(?<=(?:\A|[^:,])(?:[:,][:,]){MANY}"  # NLTK's rule consumes two characters, so it skips every other mark
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
    """Insert spaces around the remaining quotes, which are closing ones, and before clitics; join the sentences."""
    return [
        Replace(Regex(rf"\A|\z|{CUT}"), " "),
        insert_space(*around_pairs("'")),
        Replace('"', " '' "),
        insert_space(r"(?='[smd]?\s)(?<=[^'\s])"),
        insert_space(r"(?=(?:'ll|'re|'ve|n't)\s)(?<=[^'\s])"),
    ]


def contractions() -> list[Normalizer]:
    """Split contractions without an apostrophe: `cannot`, `gonna` and others, and `wanna` before white space."""
    whole = "|".join(first + second for first, second in CONTRACTIONS)
    inside = [rf"(?<=\b{first})(?={second}\b)" for first, second in CONTRACTIONS]
    return [
        insert_space(
            rf"\b(?=(?:{whole})\b)", rf"(?<=\b(?:{whole}))\b", *inside, r"\b(?=wanna\s)", r"(?<=\bwan)(?=na\s)"
        ),
        insert_space(r"(?<=\s't)(?=(?:is|was)\b)", r"(?<=\s't(?:is|was))\b"),
    ]


def insert_space(*places: str) -> Normalizer:
    """Insert a space at each of the places. Unlike a replacement, an insertion keeps the offset of every character."""
    return Replace(Regex("|".join(places)), " ")


def around(characters: str) -> tuple[str, str]:
    """The places before and after each of the characters."""
    return f"(?=[{characters}])", f"(?<=[{characters}])"


def around_pairs(mark: str) -> tuple[str, str]:
    """The places before and after each pair of a mark, counted from the start of a run of up to 80 marks."""
    run = rf"(?<=(?:\A|[^{mark}])(?:{mark}{mark})"
    return f"(?={mark}{mark}){run}{MANY})", f"{run}{{1,40}})"
