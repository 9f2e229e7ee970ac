// A question and its answer on the page: words and tokens that can be pointed at, or reached with the arrow keys.

const UNSURE = 0.5;

function element(kind, name, text = "") {
  const made = document.createElement(kind);
  made.className = name;
  made.textContent = text;
  return made;
}

function percent(probability) {
  return probability > 0.99 ? "over 99 %" : `${Math.round(100 * probability)} %`;
}

/** One question with its answer, as far as it is there. `looks` maps an element to what it looked at. */
export class Turn {
  constructor(question, looks) {
    this.question = question;
    this.looks = looks;
    this.tokens = [];
    this.pieces = [];
    this.box = element("article", "turn");
    this.asked = element("p", "question", question);
    this.said = element("p", "answer");
    this.said.setAttribute("role", "group");
    this.said.setAttribute("aria-label", "Answer, token by token: arrow keys move between tokens");
    this.asked.setAttribute("role", "group");
    this.asked.setAttribute("aria-label", "Question, word by word: arrow keys move between words");
    this.cursor = element("span", "cursor");
    this.said.append(this.cursor);
    this.facts = element("p", "facts");
    this.box.append(this.asked, this.said, this.facts);
  }

  looked({ boxes, doubts }) {
    this.boxes = boxes;
    this.facts.before(...doubts.map((doubt) => element("p", "doubt", `a guess: ${doubt}`)));
  }

  /** Take what the model says next: words of the question, a token, what it looked at, or that it is over. */
  told(told) {
    if (told.words) this.#split(told.words);
    else if (told.answer) this.#over(told.answer);
    else if (told.weights) this.#weighed(told.token, told.weights);
    else this.#say(told);
  }

  #split(words) {
    const parts = [];
    let done = 0;
    for (const { start, end, weights } of words) {
      const word = this.#marked(this.question.slice(start, end), "word");
      this.looks.set(word, { weights, boxes: this.boxes });
      parts.push(this.question.slice(done, start), word);
      done = end;
    }
    this.asked.replaceChildren(...parts, this.question.slice(done));
    this.#reachable(this.asked);
  }

  /** Show a token; one that ends within a character waits for the token that completes it. */
  #say({ token, text, probability }) {
    this.tokens.push({ probability, weights: null });
    this.waiting = [...(this.waiting ?? []), token];
    const shown = this.pieces.length ? text : text.trimStart();
    if (!shown) return;
    const chance = this.waiting.reduce((product, one) => product * this.tokens[one].probability, 1);
    const piece = this.#marked(shown, "token");
    piece.title = `probability ${percent(chance)}`;
    piece.setAttribute("aria-label", `${shown.trim() || "space"}, probability ${percent(chance)}`);
    piece.classList.toggle("unsure", chance < UNSURE);
    this.pieces.push({ piece, tokens: this.waiting });
    this.waiting = [];
    this.cursor.before(piece);
    this.#reachable(this.said);
  }

  #weighed(token, weights) {
    this.tokens[token].weights = weights;
    const held = this.pieces.find(({ tokens }) => tokens.includes(token));
    if (!held) return;
    const known = held.tokens.map((one) => this.tokens[one].weights).filter(Boolean);
    const mean = weights.map((_, grid) => known.reduce((sum, one) => sum + one[grid], 0) / known.length);
    this.looks.set(held.piece, { weights: mean, boxes: this.boxes });
  }

  #over({ text, complete, probability, tokens }) {
    this.cursor.remove();
    if (!this.pieces.length) this.said.append(element("span", "nothing", "(an empty answer)"));
    this.answer = text;
    const cut = complete ? [] : ["cut short: it is as long as an answer may be here"];
    const count = `${tokens.length} token${tokens.length > 1 ? "s" : ""}`;
    this.facts.textContent = [`probability ${percent(probability)}`, count, ...cut].join(" · ");
  }

  /** End without an answer, or with the beginning of one. */
  ended(text) {
    this.cursor.remove();
    this.facts.textContent = text;
  }

  #marked(text, kind) {
    const marked = element("span", `marked ${kind}`, text);
    marked.setAttribute("role", "button");
    marked.tabIndex = -1;
    return marked;
  }

  /** One stop of the Tab key for each line; the arrow keys do the rest. */
  #reachable(line) {
    const first = line.querySelector(".marked");
    if (first && !line.querySelector('.marked[tabindex="0"]')) first.tabIndex = 0;
  }
}

/** Move with the arrow keys between the words of a line. */
export function moveWithArrows(event) {
  const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
  const here = event.target.closest?.(".marked");
  if (!here || !(event.key in steps)) return;
  const line = [...here.parentElement.querySelectorAll(".marked")];
  const next = line[Math.min(line.length - 1, Math.max(0, line.indexOf(here) + steps[event.key]))];
  here.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
  event.preventDefault();
}
