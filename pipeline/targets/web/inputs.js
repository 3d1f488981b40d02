// What a person gives a model: a drawing or a picture, a sentence, or numbers.
//
//     const input = inputFor(model, (row, note) => ...); // called with each new row, or null
//     input.show(row);  input.clear();

import { conventionOf, drawn, isUnlike, trace, written } from "./ink.js";
import { paintPixels, readPicture, resized } from "./pixels.js";

const MOST_FIELDS = 32; // more numbers are typed as one text
const CHANNELS = [1, 3, 4];
const PEN = 0.06; // how thick a line is on the surface, in parts of it

export const find = (id) => document.getElementById(id);

export function inputFor(model, changed) {
  const { rowShape, input: { dtype } } = model;
  const isPicture = dtype === "uint8" && rowShape.length === 3 && CHANNELS.includes(rowShape[2]);
  if (isPicture) return new Picture(model, changed);
  if (dtype === "object") return new Sentence(model, changed);
  return new Numbers(model, changed);
}

class Picture {
  asks = "Draw, or choose a picture.";
  #changed;
  #strokes = [];
  #picture = null;
  #convention = null;
  #surface = find("surface").getContext("2d");

  constructor(model, changed) {
    this.#changed = changed;
    [this.height, this.width, this.channels] = model.rowShape;
    Object.assign(find("pixels"), { width: this.width, height: this.height });
    find("picture").hidden = find("files").hidden = false;
    this.#takePictures();
    if (this.channels === 1) {
      const { data } = model.golden.get("input");
      this.#convention = conventionOf(data, data.length / model.rowSize, this.height, this.width);
      this.#takeStrokes();
    } else {
      this.asks = "Choose a picture.";
    }
    find("hint").textContent = `${this.channels === 1 ? "Draw here, or drop" : "Drop"} or paste a picture.`;
  }

  show(row) {
    this.#strokes = [];
    this.#picture = null;
    this.#see(row);
    this.#surface.imageSmoothingEnabled = false;
    this.#paint(find("pixels"));
  }

  clear() {
    this.#strokes = [];
    this.#picture = null;
    const empty = this.#convention?.background ?? 255;
    this.#see(new Uint8Array(this.width * this.height * this.channels).fill(empty));
    this.#paint();
  }

  #takeStrokes() {
    const surface = find("surface");
    surface.classList.add("drawable");
    const put = (event) => {
      const box = surface.getBoundingClientRect();
      const moves = event.getCoalescedEvents?.() ?? [];
      for (const { clientX, clientY } of moves.length ? moves : [event]) {
        this.#strokes.at(-1).push([(clientX - box.left) / box.width, (clientY - box.top) / box.height]);
      }
      this.#paint();
      const row = drawn(this.#strokes, this.#convention);
      this.#see(row);
      this.#changed(row, "");
    };
    surface.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      event.preventDefault();
      if (event.isTrusted) surface.setPointerCapture(event.pointerId);
      if (this.#picture || !this.#strokes.length) this.clear();
      this.#strokes.push([]);
      put(event);
    });
    surface.addEventListener("pointermove", (event) => {
      if (event.buttons & 1 && this.#strokes.length) put(event);
    });
  }

  #takePictures() {
    for (const chooser of [find("file"), find("photo")]) {
      chooser.addEventListener("change", () => {
        this.#read(chooser.files[0]);
        chooser.value = ""; // the same file can be chosen again
      });
    }
    addEventListener("dragover", (event) => event.preventDefault());
    addEventListener("drop", (event) => {
      event.preventDefault();
      this.#read(event.dataTransfer.files[0]);
    });
    addEventListener("paste", (event) => this.#read(event.clipboardData.files[0]));
    find("adapt").addEventListener("change", () => this.#give());
  }

  async #read(file) {
    if (!file) return;
    try {
      this.#picture = await readPicture(file, this.channels);
    } catch {
      this.#changed(null, `${file.name || "What was given"} is not a picture that this browser can read.`);
      return;
    }
    this.#strokes = [];
    if (this.#convention) find("adapt").checked = isUnlike(this.#fitted(), this.#convention);
    this.#give();
  }

  #fitted() {
    return resized(this.#picture, this.width, this.height);
  }

  /** Hand the picture on, as `ferry predict` reads it or as writing. */
  #give() {
    const adapt = this.#convention && find("adapt").checked;
    const row = adapt ? written(this.#picture, this.#convention) : this.#fitted().data;
    this.#see(row);
    this.#surface.imageSmoothingEnabled = true;
    this.#paint(this.#picture.bitmap);
    this.#changed(row, adapt ? "" : "Read as “ferry predict --resize” reads it.");
  }

  /** Show what the model gets. */
  #see(row) {
    find("adapt-line").hidden = !(this.#convention && this.#picture);
    const picture = { data: row, width: this.width, height: this.height, channels: this.channels };
    paintPixels(find("pixels"), picture, 255 / Math.max(1, this.#convention?.brightest ?? 255));
  }

  #paint(picture) {
    const { canvas } = this.#surface, { width, height } = canvas;
    const light = this.#convention?.light ?? true;
    this.#surface.setTransform(1, 0, 0, 1, 0, 0);
    this.#surface.fillStyle = light ? "white" : "black";
    this.#surface.fillRect(0, 0, width, height);
    if (picture) {
      const scale = Math.min(width / picture.width, height / picture.height);
      const [w, h] = [picture.width * scale, picture.height * scale];
      this.#surface.drawImage(picture, (width - w) / 2, (height - h) / 2, w, h);
    }
    this.#surface.scale(width, height);
    this.#surface.strokeStyle = light ? "black" : "white";
    trace(this.#surface, this.#strokes, PEN);
  }
}

class Sentence {
  asks = "Write a sentence.";

  constructor({ rowSize }, changed) {
    this.field = find("sentence");
    find("text").hidden = false;
    this.field.addEventListener("input", () => {
      const { value } = this.field;
      const row = rowSize > 1 ? value.split("\n") : [value]; // of several texts, one a line
      changed(value && row.length === rowSize ? row : null, "");
    });
  }

  show(row) {
    this.field.value = row.join("\n");
  }

  clear() {
    this.field.value = "";
    this.field.focus();
  }
}

class Numbers {
  asks = "Give every number.";

  constructor(model, changed) {
    const { name, dtype } = model.input;
    this.size = model.rowSize;
    this.fields = this.size <= MOST_FIELDS ? this.#fields(name, dtype) : [this.#list(name)];
    for (const field of this.fields) {
      field.addEventListener("input", () => {
        const row = this.#row();
        const complete = row.length === this.size && row.every(Number.isFinite);
        changed(complete ? row : null, complete ? "" : `The model takes ${this.size} numbers.`);
      });
    }
  }

  #fields(name, dtype) {
    find("numbers").hidden = false;
    return Array.from({ length: this.size }, (_, at) => {
      const label = document.createElement("label");
      const field = document.createElement("input");
      Object.assign(field, { type: "number", step: dtype.startsWith("float") ? "any" : 1 });
      label.append(this.size > 1 ? `${name} ${at + 1}` : name, field);
      find("numbers").append(label);
      return field;
    });
  }

  #list(name) {
    find("text").hidden = false;
    find("sentence").labels[0].textContent = `${name}: ${this.size} numbers with commas between them`;
    return find("sentence");
  }

  #row() {
    const texts = this.fields.flatMap((field) => field.value.split(","));
    return texts.map((text) => (text.trim() ? Number(text) : NaN));
  }

  show(row) {
    const texts = Array.from(row, (value) => String(Number(Number(value).toPrecision(7))));
    if (this.fields.length === this.size) this.fields.forEach((field, at) => (field.value = texts[at]));
    else this.fields[0].value = texts.join(", ");
  }

  clear() {
    for (const field of this.fields) field.value = "";
    this.fields[0].focus();
  }
}
