"""The captions that tests/released/nltk_words.jsonl records: some as people write them, some put together."""

# ruff: noqa: E501, RUF001, W291  # captions as people write them

from __future__ import annotations

import random
from pathlib import Path

RECORDED = Path(__file__).parents[1] / "released" / "nltk_words.jsonl"
GENERATED = 1000

WRITTEN = r"""
A man riding a wave on top of a surfboard.
Two dogs are playing in the snow
A GROUP OF PEOPLE STANDING AROUND A TABLE WITH FOOD .
a woman in a red dress, holding an umbrella
   A cat   sits on    a window sill.   
A kitchen with a stove, a sink, and a refrigerator.
The man isn't wearing a helmet.
A dog that doesn't want to let go of its owner's shoe
They're waiting for the bus; it's late.
The boys' bikes are lined up against the wall.
The boss's desk is covered in papers'
I can't see what he's holding, but he'll drop it.
She'd rather sit than stand, and we've all seen why.
You cannot park here.
A kid who's gonna jump into the pool
He's gotta catch the frisbee!
Gimme a slice of that pizza
"Lemme in," says the cat.
Do you wanna ride the horse
Do you wanna?
There are more'n ten sheep in the field.
'Twas a sunny day at the beach.
'Tis the season: a Christmas tree with lights
D'ye see the lighthouse
A rock'n'roll band on stage
Rock 'n' roll band on stage
Fish 'n chips on a plate
Five o'clock on the clock tower
The '90s style phone sits on a desk
A '57 Chevy parked near a diner
A sign reads "STOP" in red letters.
A sign that reads "no parking".
A sign that reads "no parking."
The sign says, "Do not enter!"
"Stop!" says the sign.
"A quiet street"
" A quiet street "
The shirt says "I'm with stupid" on it
A t-shirt with the words 'Just do it' on the front
A bus with 'Not in service' on its sign.
A "STOP" sign with the word 'hammertime' under it: "STOP 'hammertime'"
He holds a sign: 'She said "yes"!'
A cake with "Happy 40th Birthday, John" written in icing (blue and white).
The poster reads ``wanted'' above a photo.
The poster reads ''wanted'' above a photo.
A boat named ''Mary''.
A boat named `Mary' in the harbor
A boat named “Mary” in the harbor.
A boat named ‘Mary’ in the harbor.
It’s a dog’s life, isn’t it?
“Don’t walk,” says the light.
A shop called «Le Chat» on the corner.
A shop called „Zur Katze“ on the corner.
She said “No!” He said “Yes.” They left.
A man (wearing a hat) waits.
A man (wearing a hat).
(A man wearing a hat.)
(A man wearing a hat). A dog is near.
A man [with a hat] and {a dog} <outside>
A smiley face :) on a wall
A red-and-white striped, old-fashioned barber's pole
A black-and-white cat -- asleep -- on a chair
A black cat--asleep--on a chair
A man - tired - on a bench
A man – tired – on a bench
A man—tired—on a bench
A dog --- no, two dogs
A train... or is it a bus?
A train ... or is it a bus ?
A train…or is it a bus?
Wait.. what is that....
"Hmm..." says the thought bubble.
A clock reads 5:30 p.m. on the wall.
A clock reads 5:30 p.m.
A clock reads 10:10 a.m., next to a mirror
It is 5 p.m. The street is empty.
It was 12:45. People ate lunch.
Dr. Smith and Mrs. Jones stand near St. Mary's church.
Mr. and Mrs. on top of a wedding cake.
A statue of Martin Luther King Jr. in Washington D.C.
The U.S. flag flies over a building in the U.S.
The U.S.A. team, e.g. the goalie, i.e. the one in green, etc. are cheering.
An A.T.M. next to a store. A man uses it.
No. 5 is written on the train
The player is no. 5. He swings the bat.
Player No. 12. is at bat.
A man vs. a bull
A street corner at 5th Ave. and Main St. in New York.
A store by J. C. Penney Co. on the corner
George W. Bush stands by a podium.
Plan B. The cake is gone.
Vitamin C. and an orange
3. a third place ribbon
The winner is number 1. A crowd cheers.
1. Cut the pizza. 2. Eat the pizza. 3. Sleep.
A burger for $5.99 and fries for $2
A sale: 50% off!
Nearly 1,000 people, or 1,000,000?
A 3.5 inch disk, .5 inches thick
A score of 3-2 in the 2nd half
A 2x4 piece of wood, 6'2" long
A 12" pizza on a 14" plate
A 12" pizza.
He is 6' tall.
1/2 of a pizza and ½ of a pie, at 20°C
A man and/or a woman
A father/son picture w/ a dog
Salt & pepper shakers; B&B sign
An AT&T store, a H&M store
Player #24 throws the ball to #7.
@home with a laptop, user@example.com on screen
www.example.com is written on the side of the truck.
A page, http://www.example.com/a?b=c&d=e#f, on a laptop.
See https://example.com.
A C++ book on top of a C# book
5*5 = 25 on the blackboard, 2+2=4
A **very** large pizza
A ~100 year old clock
A cost of €5, £3 or ¥100
A café table with crème brûlée and a piñata
A Zürich tram, a Málaga beach, an Ångström sign
ÉCOLE is written on the wall; ÀÉÎÕÜ
İstanbul at night
A ΟΔΟΣ sign in Greece. ΠΛΑΤΕΙΑΣ, ΟΔΟΣ.
Москва is written on a train station. МОСКВА!
一只猫坐在桌子上。
A sign with 猫 on it. 犬 too.
猫.
日本 "東京" 2 枚
서울 at night, and a sign 한국어.
مرحبا on a sign
A happy dog 🐶 in the park 🙂.
🙂🙂 two friends
A family 👨‍👩‍👧 at the beach!
A heart ❤️, a flag 🇺🇸
What is this?!
Wow!!! A huge wave.
Wow!!! a huge wave!!
Is it a bird? Is it a plane? No.
Look out! A bear.
Look out!A bear.Run.
A man.A woman.
A man,a woman,and a dog
A man , a woman , and a dog .
A man ; a woman : a dog
A list: apples, 3; pears: 4
Time 3 : 30 and 3:30: late
Ratio 4:3, 16:9.
A man wearing a hat ,
A man wearing a hat:
A man wearing a hat;
A man wearing a hat?
A man wearing a hat -
A man wearing a hat "
A man wearing a hat '
A man wearing a hat .. 
A man wearing a hat. .
A man wearing a hat . . .
A man wearing a hat ."
A man wearing a hat.'
A man wearing a hat.)
A man wearing a hat.').
. A man wearing a hat
- A man wearing a hat
, a man wearing a hat
'a man wearing a hat'
''
'
"
.
...
!
?!
a
(
`
The man said "hello". "Goodbye," said the dog.
The man said 'hello.' 'Goodbye,' said the dog.
He said: "Let's go." "No."
He came at "5 p.m." and left.
"He came at 5 p.m. today." So it says.
A sign reads "Dr. No" on the theater.
The sign "St." hangs low.
He is (approx. 5 ft. tall). She isn't.
Two men (one is a Sgt. in the army) talk.
Nov. 5 and dec. 24 on the calendar.
Feb. 29th, 2004. A leap day.
Ph.D. students in gowns. They smile.
Prof. X. teaches.
Messrs. Smith & Co.
A man in an Inc. t-shirt
a.k.a. "the king"
Rev. and Gov. shake hands in Calif. and Ill.
ca. 1950. Old photo.
A van by U.P.S. is parked.
A U.K.-based airline's plane
An ex-Gov. waves.
Don'tcha see
Y'all're welcome, ma'am
Ain't no cat
should've, would've, could've
It'd've been fun
the dogs', the cats', and the bird's
rollin' down the street
rollin' down the street, smokin'
'em cows
the 's key and the 't key
I'm, you're, he's, she'll, we'd, they've
I 'm here , it 's fine , they 're late , do n't go
CAN'T WON'T SHAN'T IT'S THEY'RE I'LL
Cannot CANNOT can-not
<unk> <start> <end> <pad>
A man's face, close-up (black & white) -- 'Portrait #3', 1/60s @ f/2.8...
A banner: "10% off -- today only!!" (until 5:30 p.m.)
100%sure $5each #1fan a@b
tab	separated	words
"""

SUBJECTS = (
    "A man", "a woman", "Two dogs", "the cat", "Three kids'", "An old man's dog", "A GROUP of people", "A café owner", "A boy",
    "Mr. Bean", "Dr. Who", "St. Nicholas", "A red-haired girl", "A 25-year-old", "Someone", "A U.S. soldier", "An F.B.I. agent",
    "The U.N. team", "Mom & Dad", "A mother/daughter pair", "'A man'", "\"A man\"", "“A man”", "John's friend", "James' friend",
)  # fmt: skip
ACTIONS = (
    "is riding a wave", "isn't looking", "can't find the ball", "sits on a bench", "cannot wait", "is gonna jump", "'s eating",
    "plays frisbee, tennis and golf", "holds a sign: \"Stop\"", "holds a sign ('stop')", "waits at 5:30 p.m.", "waits at 9 a.m.",
    "says “hi”", "says 'hello'", "stands next to #24", "paid $3.50", "won 1,000 points", "ate 50% of it", "looks up...",
    "looks up…", "is -- apparently -- lost", "is – apparently – lost", "is—apparently—lost", "they've seen", "wants more'n one",
    "lives on 5th ave.", "lives in Washington D.C.", "lives in N.Y.", "is no. 1", "likes e.g. pizza, hot dogs, etc.",
)  # fmt: skip
PLACES = (
    "", "in the park", "on the beach", "at night", "(outside)", "[in a kitchen]", "in Zürich", "near St. Paul's", "by the U.S. flag",
    "w/ a dog", "in front of a \"No Parking\" sign", "next to 猫", "🙂", "in the '90s", "on top of a 12\" plate", "at www.example.com",
    "with a boss's hat", "under a sign that says \"Dr.\"", "at 10 a.m.", "with Mr. B.", "with player 7.", "in Calif.", "vs. a bull",
)  # fmt: skip
ENDS = (
    "",
    ".",
    ".",
    ".",
    " .",
    "!",
    "!!",
    "?",
    "?!",
    "...",
    "…",
    '."',
    '".',
    ".)",
    ".'",
    "”",
    ".”",
    ":",
    ",",
    ";",
    " -",
    "  ",
    ".\n",
)
JOINS = (
    " ",
    " ",
    "  ",
    ". ",
    ". ",
    ".  ",
    "; ",
    ", ",
    " and ",
    "! ",
    "? ",
    ".\n",
    "... ",
    " -- ",
    '." ',
    ".) ",
    "\t",
    ": ",
    '; "',
    ". (",
)


def captions() -> list[str]:
    """The written captions, then one to three clauses put together, the same every time; none twice."""
    rng = random.Random(20190)
    written = [line for line in WRITTEN.split("\n") if line.strip()]
    long = [f"{clause} " * 12 for clause in ("A man's dog,", '"Stop!"', "at 5 p.m. a cat.", "can't (or won't)")]
    return list(dict.fromkeys([*written, *long, *(composed(rng) for _ in range(GENERATED))]))


def composed(rng: random.Random) -> str:
    """One to three clauses, joined and ended in one of many ways."""
    clauses = (
        f"{rng.choice(SUBJECTS)} {rng.choice(ACTIONS)} {rng.choice(PLACES)}" for _ in range(rng.choice((1, 1, 2, 3)))
    )
    text = next(clauses)
    for clause in clauses:
        text += rng.choice(JOINS) + clause
    return text + rng.choice(ENDS)
