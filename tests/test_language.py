"""The share of words in the target language, against fragments of chains of thought that were put together by hand."""

import re
import time
import unicodedata

import pytest

from rlreason.rewards.language import language
from rlreason.types import Task

# A fragment a line: segments, each with its language; "-" is neutral (formulas, code, numbers, tags, symbols).
FRAGMENTS = r"""
en: Let me first find the total number of apples that she bought.
en: We need to compute | -: $\frac{48}{2} = 24$ | en: and then add the result to the original amount.
en: Okay, so the train travels | -: 60 | en: miles in one hour, which means it needs three hours.
en: Since both sides are positive, we can take the square root. | -: \[ x = \sqrt{2} \]
en: Wait, that is not right. I should check the second equation again.
en: The answer must be an even number, because the sum of two odd numbers is even.
en: First, she eats three for breakfast. Then she bakes muffins with four of them.
en: Let us try a different approach and look at the remainder modulo seven.
en: So the function below returns the right value. | -: ```def f(n): return n + 1```
en: Therefore each box holds twelve pencils, and there are five boxes in the room.
en: Suppose for contradiction that there are only finitely many primes.
en: He pays | -: $5 | en: for the book and | -: $6 | en: for the pen, so he has nothing left.
zh: 我们先计算总数，然后除以二。
zh: 首先，设这个数为 | -: $x$ | zh: ，那么它的两倍就是 | -: $2x$ | zh: 。
zh: 等一下，这里好像有问题，我需要重新检查一遍。
zh: 因为三角形的内角和是一百八十度，所以第三个角是六十度。
zh: 最后的答案是十二。
zh: 根据题意，每个盒子里有五个球，一共有四个盒子。
ja: まず、りんごの数を計算します。
ja: 次に、この値を最初の式に代入すると、答えは十二になります。
ja: ちょっと待ってください。もう一度確認しましょう。
ja: 三角形の面積を求めるには、底辺と高さが必要です。
ja: したがって、残りはゼロなので、割り切れます。
ko: 먼저 사과의 개수를 계산해 봅시다.
ko: 따라서 나머지는 영이므로 나누어떨어집니다.
ko: 잠깐만요, 다시 확인해야 합니다.
ru: Сначала найдём сумму двух чисел, а потом разделим её на три.
ru: Подожди, здесь ошибка: нужно проверить второе уравнение ещё раз.
ru: Следовательно, в каждой коробке лежит по двенадцать карандашей.
ru: Так как обе стороны положительны, можно извлечь корень.
de: Zuerst berechnen wir die Summe der beiden Zahlen und teilen sie dann durch drei.
de: Moment, das stimmt nicht, ich muss die zweite Gleichung noch einmal prüfen.
de: Da beide Seiten positiv sind, dürfen wir die Wurzel ziehen.
de: In jeder Schachtel liegen also zwölf Stifte, und es gibt fünf Schachteln.
de: Der Rest ist null, deshalb ist die Zahl durch sieben teilbar.
fr: On commence par calculer la somme des deux nombres, puis on divise par trois.
fr: Attends, ce n'est pas juste, je dois vérifier la deuxième équation.
fr: Comme les deux côtés sont positifs, nous pouvons prendre la racine carrée.
fr: Chaque boîte contient donc douze crayons, et il y a cinq boîtes.
fr: Le reste est nul, donc le nombre est divisible par sept.
es: Primero calculamos la suma de los dos números y luego la dividimos entre tres.
es: Espera, eso no es correcto, tengo que revisar la segunda ecuación.
es: Como ambos lados son positivos, podemos sacar la raíz cuadrada.
es: Por lo tanto, en cada caja hay doce lápices y quedan cinco cajas.
it: Prima calcoliamo la somma dei due numeri e poi la dividiamo per tre.
it: Aspetta, qualcosa non torna, devo controllare di nuovo la seconda equazione.
pt: Primeiro calculamos a soma dos dois números e depois dividimos o resultado por três.
pt: Como os dois lados são positivos, podemos tirar a raiz quadrada.
nl: Eerst berekenen we de som van de twee getallen en daarna delen we die door drie.
pl: Najpierw obliczamy sumę dwóch liczb, a potem dzielimy ją przez trzy.
tr: Önce iki sayının toplamını hesaplayalım, sonra üçe bölelim.
vi: Trước tiên chúng ta tính tổng của hai số, sau đó chia cho ba.
ar: أولا نحسب مجموع العددين ثم نقسمه على ثلاثة.
hi: पहले हम दोनों संख्याओं का योग निकालते हैं और फिर उसे तीन से भाग देते हैं।
th: ก่อนอื่นเราคำนวณผลรวมของจำนวนทั้งสอง
el: Πρώτα υπολογίζουμε το άθροισμα των δύο αριθμών και μετά διαιρούμε με το τρία.
he: קודם נחשב את סכום שני המספרים ואז נחלק בשלוש.
uk: Спочатку знайдемо суму двох чисел, а потім поділимо її на три.
en: We need to find the total. | zh: 我们先计算总数。 | en: Then we divide it by two.
en: Let me think about this problem. | zh: 设这个数为 | -: $x$
en: So the answer is twelve. | zh: 等一下，我需要检查。 | en: Yes, it is twelve.
zh: 首先我们计算 | en: the total number of apples | zh: ，然后除以二。
zh: 这是一个 | en: quadratic equation | zh: ，可以用公式求解。
en: The remainder is zero, | zh: 所以可以整除 | en: and we are done with this case.
en: Hmm, | zh: 让我想想 | en: this looks like a geometric series with ratio two.
zh: 我们得到 | -: $a = 3$ | zh: 。 | en: Substitute this into the second equation.
en: First we compute the area of the triangle. | zh: 然后我们计算圆的面积。 | en: The difference is the shaded region.
zh: 所以答案是五。 | en: Let me double check this result. | zh: 没有问题。
en: Let me compute the sum. | ja: まず合計を計算します。 | en: The sum is twelve.
ja: 答えは十二です。 | en: Let me verify this with another method.
zh: 我们先计算总数。 | ja: 次に二で割ります。
zh: 这个结论是正确的。 | ja: したがって、答えは五になります。
en: We have two cases. | ko: 첫 번째 경우를 먼저 살펴봅시다. | en: The second case is similar.
ko: 먼저 합을 계산합니다. | en: That gives us fifteen in total.
en: Let us check the second equation. | ru: Подставим найденное значение в первое уравнение. | en: It works.
ru: Сначала найдём сумму. | en: Then we divide the sum by three. | ru: Получаем двенадцать.
ru: Значит, ответ двенадцать. | zh: 我们再检查一遍。
ru: Сначала вычислим площадь треугольника. | uk: Потім обчислимо площу кола і знайдемо різницю.
en: Let us compute the total first. | de: Danach teilen wir das Ergebnis durch zwei. | en: This gives us twelve.
de: Zuerst berechnen wir die Summe. | en: Then we divide the result by the number of boxes.
en: We know that | de: die Summe der Winkel im Dreieck | en: is equal to one hundred and eighty degrees.
de: Das ist eine quadratische Gleichung, | en: so we can use the quadratic formula | de: und erhalten zwei Lösungen.
en: Let me try another approach. | fr: On peut aussi calculer la somme directement. | en: That gives the same result.
fr: Commençons par le premier cas. | en: The second case follows from the first one.
en: The probability is one half, | fr: donc nous avons besoin de deux essais | en: on average before the first success.
en: We should look at the remainder. | es: El resto es cero, así que el número es divisible entre siete. | en: We are done.
es: Primero calculamos el área del triángulo. | en: Then we subtract it from the area of the circle.
en: The first number is larger, | es: por lo que la diferencia es positiva | en: and the square root is real.
de: Zuerst berechnen wir die Summe. | fr: Ensuite, nous divisons le résultat par deux.
fr: La somme des angles est connue. | de: Deshalb können wir den dritten Winkel berechnen.
es: La suma de los ángulos es conocida. | de: Deshalb können wir den dritten Winkel berechnen.
fr: Nous avons deux équations et deux inconnues. | es: Entonces podemos resolver el sistema por sustitución.
it: Calcoliamo la somma dei due numeri. | en: After that we divide the result by the number of days.
pt: Então não temos nenhuma solução inteira. | en: Let us check the boundary values as well.
nl: Daarna delen we het bedrag door het aantal dagen. | en: This is the price that she pays for each day.
en: Let me see. | zh: 总数是十二。 | de: Das stimmt mit der ersten Rechnung überein. | en: Good, both of them agree.
en: Here is the code. | -: `x = total // 2` | zh: 这段代码是对的。 | en: It prints the right number.
ar: نحسب المجموع أولا. | en: Then we divide it by two.
hi: पहले योग निकालते हैं। | en: Then we divide it by the number of children.
pl: Najpierw obliczamy sumę tych liczb. | en: The rest of the proof is the same as before.
th: เราคำนวณผลรวมก่อน | en: and then we divide the sum by two.
"""
PER_CHARACTER = {"zh", "ja", "th"}


def parsed():
    for line in FRAGMENTS.strip().splitlines():
        segments = [part.strip().partition(": ")[::2] for part in line.split(" | ")]
        counts = {}
        for code, words in segments:
            if code in PER_CHARACTER:
                letters = sum(c.isalpha() for c in words) if code != "th" else len(words.replace(" ", "")) / 4
                counts[code] = counts.get(code, 0) + letters
            elif code != "-":
                least = 1 if code in ("ru", "uk", "ko") else 2  # letters: a single one in Latin letters is a symbol
                counts[code] = counts.get(code, 0) + sum(sum(c.isalpha() for c in w) >= least for w in words.split())
        yield " ".join(words for _, words in segments), counts


def test_a_hundred_fragments_have_the_share_that_they_were_made_with():
    """Tolerance: 0.01 on average, 0.1 for nineteen out of twenty, 0.3 for each."""
    rows = list(parsed())
    assert len(rows) >= 100
    errors = {}
    for text, counts in rows:
        for target in {"en", *counts}:
            share = counts.get(target, 0) / sum(counts.values())
            errors[text, target] = abs(language(Task("0", ""), text, target=target) - share)
    assert sum(errors.values()) / len(errors) < 0.01
    assert sum(error <= 0.1 for error in errors.values()) / len(errors) >= 0.95
    assert max(errors.values()) <= 0.3, max(errors, key=errors.get)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("<think>Let us add the numbers.</think><answer>这是答案</answer>", 1),
        ("Let us add the numbers.</think>这是答案", 1),  # the template opened it
        ("这是<think>Let us add the numbers.", 1),  # cut off
        ("<think>我们来算</think>Let us add the numbers.", 0),
        ("Let us add them 我们来算", 0.5),  # no tags: all of it
    ],
)
def test_the_chain_of_thought_is_what_counts(text, share):
    assert language(Task("0", ""), text) == share


@pytest.mark.parametrize(
    "neutral",
    ["$x + y$", "$$\\text{somme}$$", "\\[ a \\]", "\\( \\text{donc} \\)", "\\boxed{x}", "\\begin{align} somme \\end{align}",
     "`resultat`",
     "```\nretourner le resultat\n```", "```\nnicht geschlossen", "https://example.org/ergebnis", "x", "12", "x1", "20km",
     "a_b", "GCD", "∑ → ≤", "😀", "\x00\ud800"],
)  # fmt: skip
def test_what_is_in_no_language_does_not_count(neutral):
    assert language(Task("0", ""), f"我们 {neutral}", target="zh") == 1
    assert language(Task("0", ""), neutral, wordless=0.25) == 0.25


def test_money_is_no_formula():
    assert language(Task("0", ""), "It costs $5 我们来算 and $6 together", target="zh") == 0.5  # 4 words, 4 characters
    assert language(Task("0", ""), "It costs $5 我们来算/$6 and more", target="zh") == 0.5


def test_without_a_word_nothing_is_in_another_language():
    assert language(Task("0", ""), "") == 1
    assert language(Task("0", ""), "<think>7+5=12</think>", wordless=0.0) == 0


def test_a_task_may_say_its_own_language():
    assert language(Task("0", "", info={"language": "zh"}), "我们来算", target="en") == 1
    assert language(Task("0", "", info={"choices": []}), "我们来算", target="en") == 0


def test_short_words_of_scripts_that_make_no_symbols_count():
    assert language(Task("0", ""), "이 수 is the number", target="ko") == 2 / 5
    assert language(Task("0", ""), "12개 and 5 км", target="ko") == 1 / 3
    assert language(Task("0", ""), "и я we are", target="en") == 0.5


def test_letters_and_accents_may_come_apart():
    apart = unicodedata.normalize("NFD", "Où est la réponse à ça ? Wörter, Tiếng Việt, 사과, йод")
    assert not unicodedata.is_normalized("NFC", apart)
    for target in ("fr", "ko", "vi"):
        assert language(Task("0", ""), apart, target=target) == language(
            Task("0", ""), unicodedata.normalize("NFC", apart), target=target
        )


def test_codes_may_have_a_region():
    assert language(Task("0", ""), "我们来算", target="zh-CN") == language(Task("0", ""), "我們來算", target="zh_Hant") == 1


def test_a_heading_of_han_characters_goes_with_the_text_around_it():
    japanese = "合計\nまず、りんごの数を計算します。\n結論\n答えは十二です。"
    assert language(Task("0", ""), japanese, target="ja") == 1
    assert language(Task("0", ""), japanese, target="zh") == 0
    assert language(Task("0", ""), "合計", target="zh") == 1


@pytest.mark.parametrize(
    ("text", "target", "share"),
    [
        ("abcd", "[a-m]", 1), ("abxy", "[a-m]", 0.5), ("<think>abc z</think>zzz", "[a-m]", 0.75), ("a+b=?", "[a-m]", 1),
        ("12ab", "[0-9]", 0.5), ("abxy", "[^a-m]", 0.5), ("+", "[a-m]", 1),
    ],
)  # fmt: skip
def test_an_alphabet_in_place_of_a_language(text, target, share):
    assert language(Task("0", ""), text, target=target) == share


@pytest.mark.parametrize(
    ("target", "told"),
    [("english", "'english' is no language that can be told; known are zh, ja and af,"), ("xx", "'xx' is no language"),
     ("[a", "no set of characters"), ("", "is no language: say an ISO 639-1 code")],
)  # fmt: skip
def test_a_target_that_cannot_be_is_told(target, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        language(Task("0", ""), "word", target=target)


@pytest.mark.parametrize(
    "text",
    ["Let us add. " * 90_000, "算" * 1_000_000, "a" * 1_000_000, "$a " * 330_000, "\\[" * 500_000, "\\(" * 500_000,
     "\\begin{" * 140_000, "`" * 1_000_000, "<a" * 500_000, "a'" * 500_000, "a" + "\u0301" * 1_000_000, "\ud800" * 1_000_000,
     "a" + "\u0301\u0323" * 500_000,
     " ".join(f"{i:b}".translate({48: "ba", 49: "di"}) for i in range(60_000))],
    ids=["english", "han", "one word", "dollars", "brackets", "parentheses", "begins", "ticks", "less", "quotes", "marks",
         "surrogates", "mixed marks", "new words"],
)  # fmt: skip
def test_a_megabyte_takes_bounded_time(text):
    started = time.process_time()
    for target in ("en", "ja", "[a-m]"):
        assert 0 <= language(Task("0", ""), text, target=target) <= 1
    assert time.process_time() - started < 10  # seconds; at most 2 on an idle machine
