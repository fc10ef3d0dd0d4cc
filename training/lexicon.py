"""What the demonstration model knows: the words of two languages and the sentences they may stand in.

No two words of a language sound alike (so no `to` beside `two`, no `for` beside `four`), because nothing but the sound could
tell them apart. Words are spelled as inside a sentence.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Lexicon:
    """The vocabulary of one language.

    Attributes:
      name: the language as the model writes it.
      groups: words by group; a word of a random sequence comes from a group drawn first, by `GROUP_WEIGHTS`.
      templates: sentences with group names in braces.
    """

    name: str
    groups: dict[str, tuple[str, ...]]
    templates: tuple[str, ...]

    def words(self) -> set[str]:
        """Every word that a transcript can hold, spelled as inside a sentence."""
        in_templates = {word for template in self.templates for word in template.split() if not word.startswith("{")}
        return {word for group in self.groups.values() for each in group for word in each.split()} | in_templates


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


GROUP_WEIGHTS = {"digit": 0.2, "number": 0.15, "letter": 0.18, "day": 0.06, "month": 0.08, "colour": 0.08, "word": 0.25}
"""How often each group is drawn in random sequences; roughly by its size, digits and days more often."""

_ONES = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_TEENS = ("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")

ENGLISH = Lexicon(
    name="English",
    groups={
        "digit": ("zero", *_ONES),
        "number": (*_TEENS, *_TENS, *(f"{ten}-{one}" for ten in _TENS for one in _ONES), "one hundred"),
        "letter": _words(
            "alpha bravo charlie delta echo foxtrot golf hotel india juliett kilo lima mike November oscar papa quebec"
            " romeo sierra tango uniform victor whiskey x-ray yankee zulu"
        ),
        "day": _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
        "month": _words(
            "January February March April May June July August September October December"
        ),  # November: a letter
        "colour": _words("red blue green yellow black white grey brown pink purple orange"),
        "word": _words(
            "start stop open close turn play pause next back forward left right up down yes no please thanks hello"
            " goodbye help call send message light door window kitchen room music volume louder quieter water coffee"
            " table morning evening night today tomorrow timer alarm minutes clock house garden street train station"
            " ticket money market school book paper letter phone camera picture again wait find show save delete search"
            " weather"
        ),
    },
    templates=(
        "turn on the {colour} light",
        "turn off the music and close the door",
        "open the {colour} door",
        "close the window in the kitchen",
        "set the timer at {number} minutes",
        "set the alarm at {digit} {day} morning",
        "call {letter} {letter} {digit} {digit}",
        "send the message on {day}",
        "the train is at {number}",
        "show the weather on {day}",
        "find the {colour} book in the {colour} house",
        "play the music again please",
        "the ticket is {number} and the coffee is {digit}",
        "today is {day} {month} {number}",
        "turn the volume down and wait {digit} minutes",
        "go left and then right at the station",
        "save the picture and delete the letter",
        "the {colour} phone is on the table",
    ),
)

_EINER = ("ein", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun")
_ZEHNER = ("zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig")

GERMAN = Lexicon(
    name="German",
    groups={
        "digit": ("null", "eins", *_EINER[1:]),
        "number": (
            *_words("zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn achtzehn neunzehn hundert"),
            *_ZEHNER,
            *(f"{one}und{ten}" for ten in _ZEHNER for one in _EINER),
        ),
        "letter": _words(
            "Anton Berta Cäsar Dora Emil Friedrich Gustav Heinrich Ida Julius Kaufmann Ludwig Martha Nordpol Otto Paula"
            " Quelle Richard Samuel Theodor Ulrich Viktor Wilhelm Xanthippe Ypsilon Zeppelin"
        ),
        "day": _words("Montag Dienstag Mittwoch Donnerstag Freitag Samstag Sonntag"),
        "month": _words("Januar Februar März April Mai Juni Juli August September Oktober November Dezember"),
        "colour": _words("rot blau grün gelb schwarz weiß grau braun rosa violett orange"),
        "word": _words(
            "starten stoppen öffnen schließen spielen warten weiter zurück vorwärts links rechts oben unten ja nein"
            " bitte danke hallo tschüss Hilfe rufen senden Nachricht Licht Tür Fenster Küche Zimmer Musik Lautstärke"
            " lauter leiser Wasser Kaffee Tisch Abend Nacht heute morgen gestern Wecker Minuten Uhr Haus Garten Straße"
            " Zug Bahnhof Fahrkarte Geld Markt Schule Buch Papier Brief Telefon Kamera Bild wieder suchen zeigen"
            " speichern löschen Wetter"
        ),
    },
    templates=(
        "schalte das Licht in der Küche an",
        "schalte die Musik aus",
        "öffne das Fenster und die Tür",
        "der Zug fährt um {number} Uhr",
        "stelle den Wecker auf {number} Uhr",
        "rufe {letter} {letter} {digit} {digit}",
        "sende die Nachricht am {day}",
        "zeige das Wetter am {day}",
        "heute ist {day} der {number} {month}",
        "das Haus ist {colour} und die Tür ist {colour}",
        "spiele die Musik bitte wieder",
        "der Kaffee und das Wasser sind auf dem Tisch",
        "die Fahrkarte nach {letter} {letter} bitte",
        "geh am Bahnhof links und dann rechts",
        "warte {number} Minuten im Garten",
        "lösche das Bild und speichere den Brief",
        "das Buch ist {colour} und das Papier ist {colour}",
        "stelle die Lautstärke auf {number}",
    ),
)

LANGUAGES = (ENGLISH, GERMAN)
