// What a model answers: labels with bars, pictures, or numbers.
//
//     const answers = new Answers(model);
//     answers.show(outputs);  answers.blank("Draw a digit.");

import { find } from "./inputs.js";
import { paintPixels } from "./pixels.js";

const MOST_BARS = 12; // of more classes, those with the highest scores
const MOST_NUMBERS = 16;
const PAUSE = 700; // milliseconds without a change, before the answer is spoken

export class Answers {
  #model;
  #bars;
  #timer;

  constructor(model) {
    this.#model = model;
    const { scores, are_probabilities: probabilities } = model.manifest.classes;
    this.#bars = scores ? this.#makeBars() : [];
    this.format = (value) => (probabilities ? `${(100 * value).toFixed(1)} %` : short(value));
    find("bars").hidden = !scores;
  }

  blank(text) {
    find("said").hidden = false;
    this.#say(text, "");
    find("said").classList.add("blank");
    const fixed = this.#names.length <= MOST_BARS;
    this.#bars.forEach((bar, at) => bar.set(fixed ? this.#names[at] : "", "", 0, false));
    find("outputs").replaceChildren();
  }

  show(outputs) {
    find("said").classList.remove("blank");
    const { classes } = this.#model.manifest;
    const label = this.#model.labels(outputs)?.[0];
    if (label === undefined) return this.#showOutputs(outputs);
    const name = this.#names[label] ?? String(label);
    const { data } = classes.scores ? outputs[classes.scores.name] : {};
    this.#say(name, data ? this.format(data[label]) : "");
    if (data) this.#showBars(Array.from(data), label);
  }

  get #names() {
    return this.#model.manifest.labels;
  }

  #say(name, value) {
    write(find("label"), name);
    write(find("value"), value);
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => (find("spoken").textContent = `${name} ${value}`), PAUSE);
  }

  #makeBars() {
    return Array.from({ length: Math.min(this.#names.length, MOST_BARS) }, () => {
      const line = document.createElement("li");
      const [label, track, number] = ["label", "track", "number"].map((name) => {
        return Object.assign(document.createElement("span"), { className: name });
      });
      const fill = document.createElement("span");
      track.append(fill);
      track.ariaHidden = "true";
      line.append(label, track, number);
      find("bars").append(line);
      const set = (name, text, part, top) => {
        write(label, name);
        write(number, text);
        fill.style.transform = `scaleX(${part})`;
        line.classList.toggle("top", top);
      };
      return { set };
    });
  }

  #showBars(scores, label) {
    const order = scores.map((_, at) => at);
    if (scores.length > MOST_BARS) order.sort((a, b) => scores[b] - scores[a]);
    const low = Math.min(...scores), high = Math.max(...scores);
    const probabilities = this.#model.manifest.classes.are_probabilities;
    const part = (score) => (probabilities ? score : (score - low) / (high - low || 1));
    this.#bars.forEach((bar, line) => {
      const at = order[line];
      bar.set(this.#names[at], this.format(scores[at]), part(scores[at]), at === label);
    });
  }

  /** Of a model without classes: its number; what is of the input's size as a picture; the rest. */
  #showOutputs(outputs) {
    const row = String(this.#model.rowShape);
    const all = Object.entries(outputs), number = all.find(([, { data }]) => data.length === 1);
    if (number) this.#say(short(number[1].data[0]), number[0]);
    const shown = all.filter((one) => one !== number).map(([name, { dims, data }]) => {
      const figure = document.createElement("figure");
      const isPicture = dims.length === 4 && String(dims.slice(1)) === row;
      const title = Object.assign(document.createElement("figcaption"), { textContent: name });
      figure.append(isPicture ? picture(dims, data, name) : numbers(data), title);
      return figure;
    });
    find("said").hidden = !number;
    find("outputs").replaceChildren(...shown);
  }
}

/** Change a text, if it is another one: the page is laid out anew for each that is written. */
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function picture([, height, width, channels], data, name) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height, role: "img", ariaLabel: name });
  const scale = data.some((value) => value > 1.5) ? 1 : 255; // pixels from 0 to 1, as a rule
  paintPixels(canvas, { data, width, height, channels }, scale);
  return canvas;
}

function numbers(data) {
  const shown = Array.from(data.slice(0, MOST_NUMBERS), short).join(", ");
  const more = data.length > MOST_NUMBERS ? `, … (${data.length} in all)` : "";
  return Object.assign(document.createElement("p"), { textContent: shown + more });
}

function short(value) {
  return typeof value === "number" ? String(Number(value.toPrecision(4))) : String(value);
}
