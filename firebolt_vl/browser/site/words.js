// Words of a question: what stands between spaces, without punctuation around it.

// Kana, Chinese characters, Thai: no spaces stand between words, and a letter is taken for a word.
const UNSPACED = "\\u3040-\\u30ff\\u3400-\\u9fff\\u0e00-\\u0e7f";
// Python's spaces.
const SPACE = "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const BETWEEN_SPACES = new RegExp(`[${UNSPACED}]|[^${SPACE}${UNSPACED}]+`, "gu");
const AROUND = /^\p{P}*([^]*?)\p{P}*$/u;

/** Find [start, end] of each word of a text. */
export function wordSpans(text) {
  const spans = [];
  for (const found of text.matchAll(BETWEEN_SPACES)) {
    const word = AROUND.exec(found[0])[1];
    if (!word) continue;
    const start = found.index + found[0].indexOf(word);
    spans.push([start, start + word.length]);
  }
  return spans;
}
