"""Make our own tasks: everyday topics crossed with short requests, in four splits.

`train` crosses the training topics with the training templates; `heldout_topics` crosses unseen
topics with the training templates; `heldout_phrasings` crosses unseen topics with templates that
training never uses. `development` crosses topics of its own with the training templates: choices
are made on them, so that the held-out ones are looked at once. The requests name no number and no
format, so that they contradict none of the constraints that a prompt adds to them.

Each topic has words that a short answer is likely to use. They are keyword candidates when a prompt
is composed before any response exists: a keyword from the same topic, so that being on topic does
not give the answer away. Topics of different splits share no word and contain no part of each
other (a test checks this).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal, get_args

Split = Literal["train", "heldout_topics", "heldout_phrasings", "development"]

TRAIN_TEMPLATES: tuple[str, ...] = (
    "Write a short note about {topic}.",
    "Give a beginner some advice about {topic}.",
    "Explain briefly why people like {topic}.",
    "Tell me something useful about {topic}.",
    "Describe {topic} to a child in simple language.",
    "Write a short message to a friend about {topic}.",
    "What should a visitor from far away know about {topic}?",
    "Share a small thought about {topic}.",
)

HELDOUT_TEMPLATES: tuple[str, ...] = (
    "What is the nicest part of {topic}?",
    "You meet someone who has never heard of {topic}. What would you say first?",
    "Introduce {topic} to the readers of a village newsletter.",
    "Say what comes to mind when you think of {topic}.",
    "How can {topic} make an ordinary day better?",
)


_TRAIN = """
tea: leaves water cup warm drink flavor kettle morning
bicycles: wheels ride helmet road exercise brakes chain pedal
rain: umbrella puddles drops wet plants clouds sound fresh
libraries: books read quiet shelves study borrow learn stories
bread: flour oven warm crust yeast slices butter dough
cats: fur purr play whiskers food home soft sleep
gardens: soil plants water seeds sun vegetables grow peaceful
kites: wind string sky fly colorful tail breeze open
pancakes: batter syrup breakfast butter pan flour sweet fluffy
winter mornings: cold frost coat blanket warm light quiet breath
old maps: paper roads travel history lines places names discover
umbrellas: dry handle fold weather carry open bright protect
beaches: sand waves sun shells towel sea swim relax
chess: board pieces king strategy think move opponent patience
guitars: strings music chords play practice song sound wood
honey: bees sweet jar golden spoon toast flowers natural
lighthouses: light sea ships coast tower rocks safe night
markets: fresh fruit vendors local food stalls prices friendly
mountains: climb view hike trail air peak nature height
museums: art history exhibits learn visit paintings past culture
neighbors: help friendly street community kind share smile trust
notebooks: write ideas paper pen pages notes plan remember
oranges: juice peel fruit sweet vitamin fresh slices healthy
painting: brush color canvas art create paper relax practice
parks: grass benches walk children play nature paths fresh
photographs: memories camera moments family light album smile keep
picnics: blanket basket food grass friends sunny outdoors sandwiches
pillows: soft bed head comfort neck rest feathers support
postcards: stamp picture travel send message friend mail place
potatoes: boil mash roast salt butter cook fry simple
puzzles: pieces solve brain patience picture fun challenge focus
recipes: ingredients cook steps measure kitchen taste simple follow
rivers: water flow fish bank boat valley nature clean
running shoes: feet comfort support fit miles laces sole cushion
sandwiches: bread cheese lunch fillings simple tasty lettuce quick
sleep: rest bed dream night health body dark relax
snow: white cold play winter flakes sled boots quiet
soap: clean hands wash water bubbles skin germs gentle
soup: vegetables hot bowl broth comfort spoon simmer healthy
spiders: web legs insects silk small catch garden harmless
stars: night sky bright light distance wonder planets shine
stories: characters imagine adventure read share lesson listen tell
strawberries: red sweet fruit summer cream fresh juicy seeds
swimming: pool water exercise arms breathe muscles safe fun
tomatoes: red sauce salad ripe plant fresh juicy sun
buses: seats stop driver city ticket route ride traffic
trees: shade leaves roots oxygen wood birds tall branches
volcanoes: lava eruption ash mountain heat rocks earth powerful
walking: steps health fresh exercise relax legs daily shoes
watches: time hands wrist strap battery style gift minutes
windows: glass light view open curtains clean breeze house
wool: sheep warm sweater soft knit yarn winter natural
zoos: animals children lions visit learn feed habitat care
birthdays: cake gifts friends party family celebrate age balloons
boats: sail water wind lake wood anchor deck wave
bridges: cross river steel connect strong road engineers safe
butterflies: wings colorful flowers flutter nature garden gentle caterpillar
candles: flame wax light warm scent room evening glow
carpets: floor soft warm pattern room clean color vacuum
cheese: milk taste slice flavor cream cracker aged salty
clouds: sky white shapes weather float water gray drift
coins: money metal collect value pocket save history small
cookies: chocolate bake sweet dough oven crunchy milk share
dentists: teeth clean healthy brush smile visit care gums
dogs: loyal walk play friend bark train love happy
doors: open handle wood lock key enter room welcome
drums: rhythm beat sticks music loud practice band energy
farms: animals crops fields tractor food harvest work fresh
fishing: lake rod patience bait catch quiet boat hook
flowers: petals smell bloom color spring water bees bouquet
frogs: pond jump green water insects croak wet tadpoles
gloves: hands warm fingers winter leather cold protect wear
grandparents: love stories family wisdom visit memories kind time
hats: head sun style wear shade wool fashion brim
camping: tent fire forest stars backpack nature cook sleeping
"""

_HELDOUT = """
coffee: beans cup morning aroma energy milk roast warm
skateboards: wheels tricks balance deck helmet ramp practice street
thunder: storm lightning loud sky noise safe indoors rumble
elephants: trunk large herd memory gentle tusks africa gray
laundry: clothes wash soap dry fold clean basket machine
violins: strings bow music practice wood sound melody orchestra
airports: planes travel gate luggage security ticket wait passengers
bananas: yellow peel potassium snack fruit sweet energy ripe
pottery: clay wheel shape hands kiln bowl glaze create
hospitals: doctors nurses patients care health medicine treatment safe
jackets: warm pocket zipper wear cold style sleeves comfortable
lakes: water calm fish boat swim shore nature peaceful
dancing: music rhythm steps fun body partner move joy
mirrors: glass reflection face light wall clean room image
newspapers: news articles read paper events local headlines information
owls: night eyes feathers silent hunt wise wings mice
pencils: write draw paper lead eraser sharp school wood
pizza: cheese dough sauce oven toppings slice share crust
rockets: space fuel launch moon engine astronauts speed orbit
sailors: sea ship waves captain wind journey ropes harbor
scarves: neck warm knit wear color winter gift wrap
squirrels: nuts trees tail climb acorns park quick winter
telescopes: lens planets moon sky night distant observe galaxy
turtles: shell slow sea swim eggs land long live
onions: layers cry chop cook flavor soup peel taste
weddings: love family rings flowers dress celebrate guests couple
whales: ocean huge song mammals breathe swim deep gentle
yoga: stretch breathe body mind calm balance mat practice
ice cream: cold sweet cone summer flavor vanilla treat chocolate
jungles: trees animals green humid vines monkeys river plants
keys: lock door ring metal open lose safe pocket
lemons: sour juice yellow squeeze peel fresh drink zest
mushrooms: forest soil cook caps edible flavor grow safe
noodles: bowl broth boil sauce quick chopsticks tasty soft
robots: machines help work sensors program factory future learn
"""

_DEVELOPMENT = """
ferries: deck passengers harbor crossing cars captain island ride
blankets: warm cozy bed soft fold cover winter nap
pianos: keys music pedals melody practice chords black stool
calendars: dates month plan year appointments wall holidays week
backpacks: straps carry school pockets zipper hike heavy shoulders
castles: stone king towers moat walls history knights queen
deserts: sand dry hot camels dunes sun thirst oasis
elevators: buttons floor lift doors building ride stairs wait
fences: posts yard wood neighbor paint garden gate border
hammocks: trees swing rest rope shade summer lazy gently
lanterns: light glow night oil handle path glass lamp
parrots: feathers talk colorful beak cage squawk birds mimic
radios: voice music tune station listen antenna signal songs
tractors: engine field wheels plow farmer mud diesel harvest
waterfalls: mist rocks splash cliff pool roar river drop
penguins: ice waddle swim fish cold eggs feathers chicks
carrots: orange crunchy roots soup vitamin peel rabbits salad
statues: bronze stone square artist famous marble monument figure
theaters: stage actors curtain play audience lights applause drama
tunnels: dark underground road train dig mountain entrance echo
"""


def _parse(text: str) -> dict[str, tuple[str, ...]]:
    pairs = (line.split(":") for line in text.strip().splitlines())
    return {topic.strip(): tuple(words.split()) for topic, words in pairs}


TRAIN_TOPICS: dict[str, tuple[str, ...]] = _parse(_TRAIN)
HELDOUT_TOPICS: dict[str, tuple[str, ...]] = _parse(_HELDOUT)
DEVELOPMENT_TOPICS: dict[str, tuple[str, ...]] = _parse(_DEVELOPMENT)
_TOPICS = {"train": TRAIN_TOPICS, "development": DEVELOPMENT_TOPICS}


@dataclasses.dataclass(frozen=True)
class Task:
    """A request without constraints: its text, the topic and the template it was made from.

    `words` are likely words of an answer, candidates for keyword constraints.
    """

    text: str
    topic: str
    template: str
    split: Split
    words: tuple[str, ...] = ()


def tasks(split: Split) -> list[Task]:
    """Return all tasks of a split, topic by topic, in a fixed order.

    Args:
        split: "train", "heldout_topics" (unseen topics, training templates),
            "heldout_phrasings" (unseen topics and unseen templates) or "development" (topics of
            its own, training templates).

    Raises:
        ValueError: for an unknown split.
    """
    if split not in get_args(Split):
        raise ValueError(f"unknown split {split!r}: use one of {', '.join(get_args(Split))}")
    topics = _TOPICS.get(split, HELDOUT_TOPICS)
    templates = HELDOUT_TEMPLATES if split == "heldout_phrasings" else TRAIN_TEMPLATES
    return [
        Task(template.format(topic=topic), topic, template, split, words)
        for topic, words in topics.items()
        for template in templates
    ]


def task_of(prompt: str) -> Task | None:
    """Return the task that a composed prompt asks for, None for a prompt that is not of ours.

    A composed prompt begins with its task (`constraints/template.py`), so nothing else is needed to
    know the topic of a prompt that was written to a file.
    """
    return next(
        (_by_text()[prompt[:end]] for end in _ends(prompt) if prompt[:end] in _by_text()), None
    )


def _ends(prompt: str) -> range:
    return range(min(len(prompt), max(map(len, _by_text()))), 0, -1)


@functools.cache
def _by_text() -> dict[str, Task]:
    splits: tuple[Split, ...] = get_args(Split)
    return {task.text: task for split in splits for task in tasks(split)}
