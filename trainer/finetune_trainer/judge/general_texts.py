# ruff: noqa: RUF001 - Chinese has commas of its own
"""Short general texts, written for this project: what a model loses on them, it has forgotten.

They are in several languages. Only those that the base model speaks count.
"""

GENERAL_TEXTS: dict[str, tuple[str, ...]] = {
    "en": (
        "The train to the coast leaves at a quarter past nine and arrives shortly before noon.",
        "Water boils at a lower temperature in the mountains because the air pressure is lower there.",
        "She put the letter on the table, closed the window and went out into the rain.",
        "A triangle has three sides, and the sum of its angles is one hundred and eighty degrees.",
        "The council decided to build a new bridge, although many people in the town were against it.",
        "To bake bread you need flour, water, salt and yeast, and above all some patience.",
        "If the list is empty, the function returns zero; otherwise it returns the largest value.",
        "The museum is closed on Mondays, but the garden behind it is open every day of the week.",
        "Most plants turn light, water and carbon dioxide into sugar and oxygen.",
        "He learned to play the piano as a child and still practises for an hour every morning.",
        "The company sold more bicycles last year than in the five years before.",
        "When the war ended, thousands of families returned to villages that no longer existed.",
        "Please read the instructions carefully before you connect the device to the power supply.",
        "The river is wide and slow here, and in summer the children swim to the other side.",
        "An adult has thirty-two teeth, including the wisdom teeth, which often cause trouble.",
        "We compared the results of two experiments and found no difference between the groups.",
    ),
    "de": (
        "Der Zug an die Küste fährt um Viertel nach neun und kommt kurz vor Mittag an.",
        "Im Gebirge kocht Wasser bei niedrigerer Temperatur, weil dort der Luftdruck geringer ist.",
        "Das Museum ist montags geschlossen, aber der Garten dahinter ist jeden Tag geöffnet.",
        "Bitte lesen Sie die Anleitung sorgfältig, bevor Sie das Gerät anschließen.",
    ),
    "fr": (
        "Le train pour la côte part à neuf heures et quart et arrive un peu avant midi.",
        "En montagne, l'eau bout à une température plus basse parce que la pression y est plus faible.",
        "Le musée est fermé le lundi, mais le jardin derrière est ouvert tous les jours.",
        "Veuillez lire attentivement les instructions avant de brancher l'appareil.",
    ),
    "es": (
        "El tren a la costa sale a las nueve y cuarto y llega poco antes del mediodía.",
        "En la montaña el agua hierve a menor temperatura porque la presión del aire es más baja.",
        "El museo cierra los lunes, pero el jardín de atrás está abierto todos los días.",
        "Lea las instrucciones con atención antes de conectar el aparato.",
    ),
    "zh": (
        "开往海边的火车九点一刻出发，中午前到达。",
        "山上的气压较低，所以水在较低的温度下就会沸腾。",
        "博物馆星期一不开放，但后面的花园每天都开放。",
        "连接设备之前，请仔细阅读说明书。",
    ),
}
SPOKEN = 1.6  # a language counts if a byte of it costs the base at most this many times a byte of its best language


def spoken_languages(bits: dict[str, float]) -> tuple[str, ...]:
    """Return the languages that the base model speaks. `bits`: loss of a byte by language."""
    best = min(bits.values(), default=0.0)
    return tuple(language for language, value in bits.items() if value <= SPOKEN * best)
