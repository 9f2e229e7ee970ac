// Byte-level BPE from a tokenizer.json: the tokens that the tokenizer gives in Python.

// What \s is in the tokenizer's own language of patterns; JavaScript's takes U+FEFF for a space, and not U+0085.
const SPACE = "\\t-\\r \\x85\\xA0\\u1680\\u2000-\\u200A\\u2028\\u2029\\u202F\\u205F\\u3000";
const PIECES = new RegExp(
  `'(?:[stmd]|re|ve|ll)| ?\\p{L}+| ?\\p{N}+| ?[^${SPACE}\\p{L}\\p{N}]+|[${SPACE}]+(?![^${SPACE}])|[${SPACE}]+`,
  "gu",
);

/** The letter that stands for each byte: itself where it can be printed, else one from U+0100 on. */
const LETTERS = (() => {
  const printed = (byte) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  let others = 0;
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(printed(byte) ? byte : 256 + others++));
})();
const BYTES = new Map(LETTERS.map((letter, byte) => [letter, byte]));
const ENCODER = new TextEncoder();

export class Tokenizer {
  /** Read the contents of a tokenizer.json that `firebolt export page` found to be of this kind. */
  constructor({ model, added_tokens: added, post_processor: template }) {
    this.ids = new Map(Object.entries(model.vocab));
    this.ranks = new Map(model.merges.map((pair, rank) => [Array.isArray(pair) ? pair.join(" ") : pair, rank]));
    this.wholeFirst = model.ignore_merges === true;
    this.added = new Map(added.map((token) => [token.content, token.id]));
    this.special = new Set(added.filter((token) => token.special).map((token) => token.id));
    this.texts = new Map([...this.ids, ...this.added].map(([text, id]) => [id, text]));
    const longestFirst = [...this.added.keys()].sort((a, b) => b.length - a.length).map(escaped);
    this.splits = longestFirst.length ? new RegExp(longestFirst.join("|"), "g") : null;
    this.template = template?.type === "TemplateProcessing" ? template : null;
  }

  /** The tokens of a text, each as { id, start, end }: the part of the text (UTF-16) that any byte of it is in. */
  encode(text, addSpecialTokens = false) {
    const tokens = [];
    let done = 0;
    for (const found of this.splits ? text.matchAll(this.splits) : []) {
      this.#encodePlain(text.slice(done, found.index), done, tokens);
      done = found.index + found[0].length;
      tokens.push({ id: this.added.get(found[0]), start: found.index, end: done });
    }
    this.#encodePlain(text.slice(done), done, tokens);
    return addSpecialTokens && this.template ? this.#framed(tokens, text.length) : tokens;
  }

  /** Add the tokens that a text begins and ends with. */
  #framed(tokens, length) {
    const framed = [];
    for (const part of this.template.single) {
      if (part.Sequence) framed.push(...tokens);
      else {
        const at = framed.length ? length : 0;
        framed.push(...this.template.special_tokens[part.SpecialToken.id].ids.map((id) => ({ id, start: at, end: at })));
      }
    }
    return framed;
  }

  #encodePlain(text, offset, tokens) {
    for (const found of text.matchAll(PIECES)) {
      const begins = []; // of each byte the place of its character
      const ends = [];
      let place = offset + found.index;
      for (const character of found[0]) {
        const bytes = ENCODER.encode(character).length;
        begins.push(...Array(bytes).fill(place));
        place += character.length;
        ends.push(...Array(bytes).fill(place));
      }
      let byte = 0;
      for (const symbol of this.#merged([...ENCODER.encode(found[0])].map((one) => LETTERS[one]))) {
        const last = byte + [...symbol].length - 1;
        tokens.push({ id: this.ids.get(symbol), start: begins[byte], end: ends[last] });
        byte = last + 1;
      }
    }
  }

  /** Merge the pair of the lowest rank, the first of equals, until there is none. */
  #merged(symbols) {
    const whole = symbols.join("");
    if (this.wholeFirst && this.ids.has(whole)) return [whole];
    const merged = [...symbols];
    for (;;) {
      let least = Infinity, at = -1;
      for (let n = 0; n + 1 < merged.length; n++) {
        const rank = this.ranks.get(`${merged[n]} ${merged[n + 1]}`) ?? Infinity;
        if (rank < least) [least, at] = [rank, n];
      }
      if (at < 0) return merged;
      merged.splice(at, 2, merged[at] + merged[at + 1]);
    }
  }

  /** The bytes that a token says; none for a special one. */
  bytes(id) {
    if (this.special.has(id)) return new Uint8Array(0);
    const text = this.texts.get(id) ?? "";
    const letters = [...text];
    return letters.every((letter) => BYTES.has(letter))
      ? Uint8Array.from(letters, (letter) => BYTES.get(letter))
      : ENCODER.encode(text);
  }

  decode(ids) {
    const speech = new Speech(this);
    return ids.map((id) => speech.put(id)).join("") + speech.end();
  }
}

/** The text of tokens as they come, in whole characters: a token that ends within one says nothing yet. */
export class Speech {
  constructor(tokenizer) {
    this.tokenizer = tokenizer;
    this.decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  }

  put(id) {
    return this.decoder.decode(this.tokenizer.bytes(id), { stream: true });
  }

  end() {
    return this.decoder.decode();
  }
}

function escaped(text) {
  return text.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&");
}
