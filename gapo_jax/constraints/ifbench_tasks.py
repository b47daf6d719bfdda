"""IFBench's `custom` types: each is a small task of its own with one right form of answer."""

from __future__ import annotations

from gapo_jax.constraints.ifbench_base import IFBenchType

_SIBLINGS = ("repeat:repeat_change", "format:options", "format:list", "count:numbers")
_AFRICA = """Zimbabwe|Zambia|Uganda|Tunisia|Togo|Tanzania|Sudan|South Sudan|South Africa|Somalia|
Sierra Leone|Seychelles|Senegal|Sao Tome and Principe|Rwanda|Nigeria|Niger|Namibia|Mozambique|
Morocco|Mauritius|Mauritania|Mali|Malawi|Madagascar|Libya|Liberia|Lesotho|Kenya|Ivory Coast|
Guinea-Bissau|Guinea|Ghana|Gambia|Gabon|Ethiopia|Eswatini|Eritrea|Equatorial Guinea|Egypt|
Djibouti|Democratic Republic of the Congo|Congo|Comoros|Chad|Central African Republic|
Cape Verde|Cameroon|Burundi|Burkina Faso|Botswana|Benin|Angola|Algeria""".replace("\n", "")
_CAPITALS = """Reykjavik, Helsinki, Oslo, Tallinn, Stockholm, Riga, Moscow, Copenhagen, Vilnius,
Minsk, Dublin, Berlin, Amsterdam, Warsaw, London, Brussels, Prague, Luxembourg, Paris, Vienna,
Bratislava, Budapest, Vaduz, Chisinau, Bern, Ljubljana, Zagreb""".replace("\n", " ")


def _table(head: str, row: str, count: int, mark: str = ",") -> str:
    return "\n".join([head, *(row.format(i) for i in range(1, count + 1))]).replace(",", mark)


def _questions(last: str) -> str:
    options = "\n".join(f"{letter}) choice" for letter in "ABCDE")
    texts = ("Who?", "Who was it?", "Who was the painter?", last)
    return "\n".join(f"Question {i}: {text}\n{options}" for i, text in enumerate(texts, 1))


def _alphabet(last: str) -> str:
    return " ".join(f"{letter}x went home." for letter in "ABCDEFGHIJKLMNOPQRSTUVWXY" + last)


class _Custom(IFBenchType):
    siblings = _SIBLINGS


class Multiples(_Custom):
    """Multiples of 7 from 10 to 50."""

    id = "custom:multiples"
    train = (
        "Count from 10 to 50 but print only the multiples of 7.",
        "Of the numbers from 10 to 50 write just those that 7 divides.",
        "List the multiples of 7 between 10 and 50, and no other number.",
    )
    heldout = ("Going up from 10 and ending at 50, name what is divisible by 7.",)
    probes = (({}, "14, 21, 28, 35, 42, 49", "14, 21, 28, 35, 42"),)
    difference = "a number"


class MultipleChoice(_Custom):
    """Four multiple choice questions that grow longer."""

    id = "custom:mcq_count_length"
    train = (
        "Write 4 multiple choice questions of 5 options each about 20th century art, each labelled"
        ' "Question", growing longer, without explanations.',
        "Give four questions about the art of the 20th century, with options A to E; start each"
        ' with "Question" and make each longer than the last.',
        "Four multiple choice questions, 5 options each, on 20th century art history: label them"
        ' "Question", let them get longer, explain nothing.',
    )
    heldout = (
        'A quiz on art from 1900 to 2000: "Question" 1 to 4, ever longer, five answers to choose'
        " from, nothing else.",
    )
    probes = (({}, _questions("Who was the famous painter?"), _questions("Who was he?")),)
    difference = "the length of a question"


class ReverseNewline(_Custom):
    """The countries of Africa backwards."""

    id = "custom:reverse_newline"
    train = (
        "List the countries of Africa in reverse alphabetical order, each on a new line.",
        "Name all African countries from Z to A, one a line.",
        "Write the countries of Africa, one per line, sorted backwards.",
    )
    heldout = ("Beginning at Zimbabwe and ending at Algeria, give Africa's states line by line.",)
    probes = (
        (
            {},
            _AFRICA.replace("|", "\n"),
            _AFRICA.replace("Togo|Tanzania", "Tanzania|Togo").replace("|", "\n"),
        ),
    )
    difference = "the order of the lines"


class WordReverse(_Custom):
    """The national animal of the US, words reversed."""

    id = "custom:word_reverse"
    train = (
        "What animal is the national symbol of the US? Answer with the words in reverse order.",
        "Name the national animal of the US in a sentence whose words run backwards.",
        "Say which animal stands for the US, last word first and first word last.",
    )
    heldout = ("Which bird symbolises the United States? Let your sentence be read from its end.",)
    probes = (({}, "eagle bald the is it", "it is the bald eagle"),)
    difference = "the order of the words"


class CharacterReverse(_Custom):
    """The national animal of the US, letters reversed."""

    id = "custom:character_reverse"
    train = (
        "What animal is the national symbol of the US? Answer with all letters in reverse order.",
        "Name the national animal of the US in a sentence spelt backwards letter by letter.",
        "Say which animal stands for the US, the last letter first and the first letter last.",
    )
    heldout = ("Which bird symbolises the United States? Mirror your sentence character-wise.",)
    probes = (({}, "elgae dlab eht si tI", "the bald eagle"),)
    difference = "the order of the letters"


class SentenceAlphabet(_Custom):
    """26 sentences from A to Z."""

    id = "custom:sentence_alphabet"
    train = (
        "Tell a story of 26 sentences whose first words start with A to Z in order.",
        "Write 26 sentences; the first begins with A, the second with B, and so on to Z.",
        "Let each of 26 sentences open with the next letter of the alphabet.",
    )
    heldout = ("An abecedarian tale: one sentence a letter, none left out, none twice.",)
    probes = (({}, _alphabet("Z"), _alphabet("A")),)
    difference = "the first letter of a sentence"


class EuropeanCapitals(_Custom):
    """European capitals north of 45 degrees, from north to south."""

    id = "custom:european_capitals_sort"
    train = (
        "List the capitals of Europe that lie north of 45 degrees, from highest to lowest latitude,"
        " separated by commas, without countries.",
        "Name all European capitals above 45 degrees of latitude, the northernmost first, divided"
        " by commas.",
        "Give Europe's capitals beyond 45 degrees north, sorted from north to south, with commas"
        " between them and no country names.",
    )
    heldout = ("Reykjavik to Zagreb: all capitals of Europe on the way, comma by comma.",)
    probes = (({}, _CAPITALS, _CAPITALS.replace("Helsinki, Oslo", "Oslo, Helsinki")),)
    difference = "the order of the cities"


class CsvCity(_Custom):
    """Seven rows of CSV about cities."""

    id = "custom:csv_city"
    train = (
        "Generate comma-delimited CSV with the columns ID, Country, City, Year, Count and 7 rows.",
        "Write a CSV table of 7 rows under the head ID,Country,City,Year,Count",
        "Give 7 rows of CSV data; the columns are ID, Country, City, Year and Count.",
    )
    heldout = ("Seven records, fields parted by commas, headed ID,Country,City,Year,Count",)
    _HEAD, _ROW = "ID,Country,City,Year,Count", "{},France,Paris,2020,5"
    probes = (({}, _table(_HEAD, _ROW, 7), _table(_HEAD, _ROW, 6)),)
    difference = "a row"


class CsvSpecial(_Custom):
    """Fourteen rows of CSV, a special character among them."""

    id = "custom:csv_special_character"
    train = (
        "Generate comma-delimited CSV with the columns ProductID, Category, Brand, Price, Stock and"
        " 14 rows; one field holds a special character and stands in double quotes.",
        "Write a CSV table of 14 rows under ProductID,Category,Brand,Price,Stock in which one field"
        " with a special character is quoted.",
        "Give 14 rows of CSV data (ProductID, Category, Brand, Price, Stock), with a special"
        " character inside double quotes in one field.",
    )
    heldout = (
        'Fourteen records headed ProductID,Category,Brand,Price,Stock, one value like "A&B" in'
        " quotation marks.",
    )
    _HEAD = "ProductID,Category,Brand,Price,Stock"
    probes = (({}, _table(_HEAD, '{},tea,"A&B",3,4', 14), _table(_HEAD, "{},tea,A and B,3,4", 14)),)
    difference = "quotation marks and a special character"


class CsvQuotes(_Custom):
    """Three quoted rows of tab-delimited data."""

    id = "custom:csv_quotes"
    train = (
        "Generate tab-delimited data with the columns StudentID, Subject, Grade, Semester, Score"
        " and 3 rows, each field in double quotes.",
        "Write 3 rows under StudentID, Subject, Grade, Semester, Score, with tabs between the"
        " fields and double quotes around each.",
        "Give a table of 3 rows (StudentID, Subject, Grade, Semester, Score), divided by tabs, all"
        " fields quoted.",
    )
    heldout = (
        'Three records whose values are all like "x", parted by tabs, headed StudentID, Subject,'
        " Grade, Semester, Score.",
    )
    _HEAD = '"StudentID","Subject","Grade","Semester","Score"'
    probes = (
        (
            {},
            _table(_HEAD, '"{}","art","A","one","9"', 3, "\t"),
            _table(_HEAD, '{},"art","A","one","9"', 3, "\t"),
        ),
    )
    difference = "quotation marks"


class DateFormat(_Custom):
    """Dates of Napoleon's battles."""

    id = "custom:date_format_list"
    train = (
        "List the start dates of Napoleon's battles as YYYY-MM-DD, separated by commas, without"
        " explanation.",
        "Give the dates on which Napoleon's battles began, in the form YYYY-MM-DD with commas"
        " between them and nothing else.",
        "Write only dates, YYYY-MM-DD, divided by commas: when each battle of Napoleon started.",
    )
    heldout = ("When did Napoleon's battles begin? Year-month-day in digits, comma by comma.",)
    probes = (({}, "1805-12-02, 1815-06-18", "1805-12-02, 18 June 1815"),)
    difference = "the form of a date"


TYPES = (
    Multiples(),
    MultipleChoice(),
    ReverseNewline(),
    WordReverse(),
    CharacterReverse(),
    SentenceAlphabet(),
    EuropeanCapitals(),
    CsvCity(),
    CsvSpecial(),
    CsvQuotes(),
    DateFormat(),
)
