"""Whether the model behind an API is still the one that was asked before.

A hosted model can be replaced under its name, and the vectors of two models must never meet in one data set. So fixed
texts, the canaries, are encoded when a store of bought vectors is new, again from time to time, and at the end of every
call that bought; one of them goes along with every request. Their vectors need not be equal: hosted models answer the
same text with differences of about 1e-4 a dimension from call to call (openai/openai-cookbook#223,
community.openai.com/t/318054), in 1,536 dimensions a cosine of 0.99999. Two models that were trained apart are as far
from that as can be: they share no space, and their cosines are near 0.
"""

from collections.abc import Sequence

from leaf.encoder import Role, Vectors, row_cosines

#: The mean cosine of the canaries to what they were, and the least of one: 100 and 1,000 times the published noise.
MIN_MEAN_COSINE = 0.999
MIN_COSINE = 0.99
#: The least cosine of one that goes along with other texts. Lower, since some servers round by what is in the batch:
#: dynamic eight-bit ONNX Runtime moves a text by cosines of 0.98 from being alone to being among longer ones.
MIN_WITNESS_COSINE = 0.9

_QUERIES = (
    "how do I read a file line by line",
    "symptoms of iron deficiency in adults",
    "cheap flights lisbon to oslo march",
    "what did the treaty of westphalia change",
    "python dict get default value",
    "is it safe to eat raw cookie dough?",
    "wie lange muss ein Ei kochen",
    "capital gains tax on inherited shares",
    "¿qué es la fotosíntesis?",
    "0x80070057 the parameter is incorrect",
    "best running shoes for flat feet under 100",
    "who wrote the brothers karamazov",
    "東京 天気 明日",
    "difference between covariance and correlation",
    "garage door opener blinking 5 times",
    "x^2 + 3x - 10 = 0",
)
_DOCUMENTS = (
    "The liver stores glucose as glycogen and releases it between meals, which keeps blood sugar steady.",
    "def mean(values):\n    return sum(values) / len(values)\n",
    "Shipping is free for orders above 50 EUR. Returns are accepted within 30 days if the seal is not broken.",
    "In 1869 the two lines met at Promontory Summit, and a journey of months became one of a week.",
    "Der Antrag ist schriftlich bei der zuständigen Behörde einzureichen; die Frist beträgt vier Wochen.",
    "Preheat the oven to 180 °C. Whisk the eggs with the sugar until pale, then fold in flour and melted butter.",
    "SELECT name, COUNT(*) FROM orders GROUP BY name HAVING COUNT(*) > 3 ORDER BY 2 DESC;",
    "Great sound for the price, but the left earbud stopped charging after two weeks. Support never answered. 2/5",
    "La photosynthèse convertit l'énergie lumineuse en énergie chimique, stockée sous forme de sucres.",
    "A tort is a civil wrong, other than breach of contract, for which a court may award damages to the injured party.",
    "Gradient descent moves against the gradient of the loss, by a step whose size is the learning rate.",
    "Storm warnings were issued for the west coast on Tuesday evening; ferries to the islands stay in port until noon.",
    "光合作用是植物利用阳光把二氧化碳和水转化为糖和氧气的过程。",
    "He put the letter back into its envelope, unread, and listened to the rain until the lamp went out.",
    "Table 3. Yield (%) at 25, 40 and 60 °C: 12.1, 48.7, 47.9.",
    "Меню: суп дня, жареная рыба с картофелем, чай или кофе.",
)
#: (role, text), sent as they are, without any prompt of a recipe: a store serves many recipes.
CANARIES: tuple[tuple[Role, str], ...] = (
    *(("query", text) for text in _QUERIES),
    *(("document", text) for text in _DOCUMENTS),
)  # fmt: skip


def drift(before: Vectors, now: Vectors) -> str | None:
    """What is wrong with the canaries' vectors `now`, both float32 `[n, dim]`; None where the model is the same."""
    cosines = row_cosines(before, now)
    mean, least = float(cosines.mean()), float(cosines.min())
    if mean >= MIN_MEAN_COSINE and least >= MIN_COSINE:
        return None
    return (
        f"{len(now)} texts that never change now have a mean cosine of {mean:.4f} to what they had (at least "
        f"{MIN_MEAN_COSINE} is noise) and a least of {least:.4f} (at least {MIN_COSINE})"
    )


def by_role(texts: Sequence[tuple[Role, str]]) -> dict[Role, list[str]]:
    """The texts of each role, in their order."""
    return {role: [text for each, text in texts if each == role] for role in dict.fromkeys(role for role, _ in texts)}
