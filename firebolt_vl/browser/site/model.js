// The exported model: pictures to grids, a prompt, one token at a time. Needs ONNX Runtime Web, and no page around it.

import { Speech, Tokenizer } from "./tokenizer.js";
import { cutViews } from "./views.js";
import { wordSpans } from "./words.js";

const NEXT = "next.";
const BOOLS = ["mask", "kept"];

/** What cannot be asked, in words for whoever asked. */
export class Refusal extends Error {}

export class Model {
  /**
   * Open the graphs of an export.
   *
   * `ort` is the module of ONNX Runtime Web, `description` what engine.json says, `tokenizer` what tokenizer.json says,
   * `bytes` a map from a file's name to its Uint8Array.
   */
  static async open(ort, description, tokenizer, bytes) {
    if (description.format !== 1) throw new Error("the model's engine.json is of another version; export the page again");
    const externalData = [...bytes.keys()]
      .filter((name) => !Object.values(description.graphs).includes(name))
      .map((path) => ({ path, data: bytes.get(path) }));
    const sessions = {};
    for (const [part, file] of Object.entries(description.graphs)) {
      sessions[part] = await ort.InferenceSession.create(bytes.get(file), { executionProviders: ["wasm"], externalData });
    }
    return new Model(ort, description, new Tokenizer(tokenizer), sessions);
  }

  constructor(ort, description, tokenizer, sessions) {
    Object.assign(this, { ort, description, tokenizer, sessions });
  }

  /** Compute what the modulator keeps of a picture; `boxes` says where each grid lies, (y0, x0, y1, x1) in 0..1. */
  async look(picture) {
    const views = cutViews(picture, this.description.views);
    const tensors = { image_mask: this.#bools([1, 1], 1) };
    for (const [name, { data, dims }] of Object.entries(views)) tensors[name] = new this.ort.Tensor("float32", data, dims);
    tensors.tile_mask = this.#bools(views.pixel_tiles.dims.slice(0, 3), 1);
    const { boxes, ...grids } = await this.#run("grids", tensors);
    return { grids, boxes: rows(boxes) };
  }

  /** The tokens of a question in its prompt, and where in the prompt's text it begins. Throws a Refusal. */
  encode(question) {
    const held = this.description.controls.find((token) => question.includes(token));
    if (held) throw new Refusal(`the question has “${held}”, a control token of this model; write it another way`);
    const { before, after, add_special_tokens: special } = this.description.prompts[1];
    const tokens = this.tokenizer.encode(before + question + after, special);
    const most = this.description.most_tokens;
    if (tokens.length >= most) {
      throw new Refusal(`the question is ${tokens.length} tokens long; expected fewer than ${most}; shorten it`);
    }
    return { tokens, begins: before.length };
  }

  /**
   * Answer a question about what was looked at, by the most likely token each time.
   *
   * Yields { words } of the question, then for each token { token, text, probability } and, as soon as it was read,
   * { token, weights }; at the end { answer }.
   */
  async *answer({ grids }, question, mostNew) {
    const { tokens: prompt, begins } = this.encode(question);
    const room = Math.min(mostNew, this.description.most_tokens - prompt.length);
    const ids = prompt.map((token) => token.id);
    const texts = { input_ids: this.#ids(ids), attention_mask: this.#bools([1, ids.length], 1) };
    let read = await this.#advance("prompt", texts, { ...this.#empty(), ...grids });
    yield { words: words(question, prompt, begins, rows(read.weights)) };
    const speech = new Speech(this.tokenizer), tokens = [];
    let certainty = 0, text = "";
    for (;;) {
      const { best, logProbability } = mostLikely(read.logits.data);
      const token = tokens.push(best) - 1;
      const complete = this.description.stops.includes(best), over = complete || tokens.length === room;
      certainty += logProbability;
      const said = speech.put(best) + (over ? speech.end() : "");
      text += said;
      yield { token, text: said, probability: Math.exp(logProbability) };
      if (!complete) {
        read = await this.#advance("step", { input_ids: this.#ids([best]) }, read.state);
        yield { token, weights: rows(read.weights)[0] };
      }
      if (!over) continue;
      yield { answer: { text: text.trim(), tokens, complete, probability: Math.exp(certainty / tokens.length) } };
      return;
    }
  }

  async #advance(part, inputs, state) {
    const { logits, weights, ...after } = await this.#run(part, { ...inputs, ...state });
    const next = Object.entries(after).map(([name, tensor]) => [name.slice(NEXT.length), tensor]);
    return { logits, weights, state: { ...state, ...Object.fromEntries(next) } };
  }

  #run(part, tensors) {
    const names = Object.keys(this.description.inputs[part]);
    return this.sessions[part].run(Object.fromEntries(names.map((name) => [name, tensors[name]])));
  }

  /** The state before the first token. */
  #empty() {
    const sizes = { B: 1, P: 0, G: 1 }, state = {};
    for (const [name, shape] of Object.entries(this.description.inputs.step)) {
      if (name === "input_ids") continue;
      const dims = shape.map((size) => sizes[size] ?? size);
      const count = dims.reduce((product, size) => product * size, 1);
      state[name] = BOOLS.includes(name.split(".").at(-1))
        ? this.#bools(dims, 0)
        : new this.ort.Tensor("float32", new Float32Array(count), dims);
    }
    return state;
  }

  #ids(ids) {
    return new this.ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]);
  }

  #bools(dims, value) {
    return new this.ort.Tensor("bool", new Uint8Array(dims.reduce((product, size) => product * size, 1)).fill(value), dims);
  }
}

/** The rows of a tensor [1,N,C]. */
function rows({ data, dims }) {
  const width = dims.at(-1);
  return Array.from({ length: dims.at(-2) }, (_, row) => Array.from(data.subarray(row * width, (row + 1) * width)));
}

/** The most likely token, the first of equals, and the logarithm of its probability, in float64. */
function mostLikely(logits) {
  let best = 0;
  for (let id = 1; id < logits.length; id++) if (logits[id] > logits[best]) best = id;
  let sum = 0;
  for (const logit of logits) sum += Math.exp(logit - logits[best]);
  return { best, logProbability: -Math.log(sum) };
}

/** Each word of a question as { start, end, weights }: the mean over the tokens that any of its letters is in. */
function words(question, tokens, begins, weights) {
  return wordSpans(question).map(([start, end]) => {
    const held = tokens.flatMap((token, n) => (token.start < begins + end && token.end > begins + start ? [weights[n]] : []));
    return { start, end, weights: held[0].map((_, grid) => held.reduce((sum, one) => sum + one[grid], 0) / held.length) };
  });
}
