// What is drawn by hand, or photographed on paper, as a row that looks like the golden rows of a
// grey model: as large, as thick, in the same place and of the same brightness.
//
// Nothing is known of the data set but those rows. They tell that MNIST's digits are white on
// black, 20 pixels high and centred by mass, and that UCI's fill their 8 pixels with 0 to 16.

import { resized } from "./pixels.js";

const FAINT = 0.2; // ink that is less is none
const FINE = 8; // pixels of a photograph that become one
const SHADOWS = 6; // pixels across
const DOT = 0.1; // the smallest drawing that is enlarged, in parts of the surface

/** How golden rows, uint8 [count, height, width], look. */
export function conventionOf(rows, count, height, width) {
  const darkest = rows.reduce((a, b) => Math.min(a, b)), brightest = rows.reduce((a, b) => Math.max(a, b));
  const all = Array.from({ length: count }, (_, at) => {
    return rows.subarray(at * height * width, (at + 1) * height * width);
  });
  const edge = median(all.map((row) => median(border(row, height, width))));
  const light = edge > (darkest + brightest) / 2;
  const [background, ink] = light ? [brightest, darkest] : [darkest, brightest];
  const amount = (value) => (value - background) / (ink - background || 1);
  const looks = all.map((row) => look(Array.from(row, amount), height, width)).filter(Boolean);
  const typical = (name) => median(looks.map((one) => one[name]));
  const [side, thickness, x, y] = ["side", "thickness", "x", "y"].map(typical);
  return { height, width, background, ink, light, brightest, side, thickness, x, y };
}

/** Strokes, lists of [x, y] from 0 to 1, as a row of the model. */
export function drawn(strokes, convention) {
  const { height, width, side, thickness } = convention;
  const [xs, ys] = [0, 1].map((axis) => strokes.flat().map((point) => point[axis]));
  const extent = Math.max(...[xs, ys].map((all) => Math.max(...all) - Math.min(...all)), DOT);
  const scale = (side - thickness) / extent;
  const [centreX, centreY] = centreOf(strokes);
  const left = offset(xs, centreX, scale, convention.x, width, thickness);
  const top = offset(ys, centreY, scale, convention.y, height, thickness);
  const amounts = new Float64Array(height * width);
  for (const stroke of strokes) {
    const points = stroke.map(([x, y]) => [left + x * scale, top + y * scale]);
    points.forEach((end, at) => ink(amounts, points[at - 1] ?? end, end, convention));
  }
  return Uint8Array.from(amounts, (amount) => coloured(amount, convention));
}

/** Ink the pixels near a line, by how far their centres lie from it. */
function ink(amounts, [startX, startY], [endX, endY], { height, width, thickness }) {
  const reach = (thickness + 1) / 2; // the edge is as soft as a pixel
  const [dx, dy] = [endX - startX, endY - startY], square = dx * dx + dy * dy || 1;
  const first = (a, b) => Math.max(0, Math.floor(Math.min(a, b) - reach));
  const end = (a, b, most) => Math.min(most, Math.ceil(Math.max(a, b) + reach));
  for (let row = first(startY, endY); row < end(startY, endY, height); row++) {
    for (let column = first(startX, endX); column < end(startX, endX, width); column++) {
      const [x, y] = [column + 0.5 - startX, row + 0.5 - startY];
      const along = Math.max(0, Math.min(1, (x * dx + y * dy) / square));
      const amount = Math.min(1, reach - Math.hypot(x - along * dx, y - along * dy));
      const at = row * width + column;
      amounts[at] = Math.max(amounts[at], amount);
    }
  }
}

/** Where 0 comes to lie so that the centre does where it is wanted, with all of it inside. */
function offset(values, centre, scale, wanted, length, thickness) {
  const low = Math.min(...values) * scale, high = Math.max(...values) * scale;
  const most = length - thickness / 2 - high;
  return Math.max(thickness / 2 - low, Math.min(most, wanted - centre * scale));
}

/** The centre of mass of lines. */
function centreOf(strokes) {
  let mass = 0, x = 0, y = 0;
  for (const stroke of strokes) {
    for (const [at, [endX, endY]] of stroke.entries()) {
      const [startX, startY] = stroke[at - 1] ?? [endX, endY];
      const length = Math.hypot(endX - startX, endY - startY) + 1e-6; // a dot lies somewhere, too
      mass += length;
      x += (length * (startX + endX)) / 2;
      y += (length * (startY + endY)) / 2;
    }
  }
  return [x / mass, y / mass];
}

/** Show strokes as round lines of the context's colour. */
export function trace(context, strokes, lineWidth) {
  Object.assign(context, { lineWidth, lineCap: "round", lineJoin: "round" });
  for (const stroke of strokes) {
    context.beginPath();
    context.moveTo(...stroke[0]);
    for (const point of stroke) context.lineTo(...point);
    context.stroke();
  }
}

/** Whether a grey picture is unlike the golden rows: of the other brightness, or brighter. */
export function isUnlike({ data, width, height }, { background, ink, light, brightest }) {
  if (data.some((value) => value > brightest)) return true;
  return median(border(data, height, width)) > (background + ink) / 2 !== light;
}

/** What is written in a grey picture, as a row of the model. */
export function written(picture, convention) {
  const { height, width, side } = convention;
  const row = new Uint8Array(height * width).fill(convention.background);
  const fine = scaled(picture, (side * FINE) / Math.max(picture.width, picture.height));
  const thin = inkIn(evenlyLit(fine));
  const found = look(thin.data, thin.height, thin.width, 255);
  if (!found) return row;
  const missing = (convention.thickness * found.side) / side - found.thickness;
  const amounts = thickened(thin, Math.round(missing / 2));
  const box = look(amounts.data, amounts.height, amounts.width, 255);
  const fitted = scaled(cropped(amounts, box), side / box.side);
  const mass = look(fitted.data, fitted.height, fitted.width, 255) ?? { x: 0, y: 0 };
  const left = within(convention.x - mass.x, width - fitted.width);
  const top = within(convention.y - mass.y, height - fitted.height);
  fitted.data.forEach((amount, at) => {
    const x = at % fitted.width, y = (at - x) / fitted.width;
    row[(top + y) * width + left + x] = coloured(amount / 255, convention);
  });
  return row;
}

/** Lines that are thicker by `by` pixels on each side: the most ink within a square. */
function thickened({ data, width, height, channels }, by) {
  const along = (values, step, length) => values.map((_, at) => {
    const place = Math.floor(at / step) % length;
    let most = 0;
    for (let near = Math.max(0, place - by); near <= Math.min(length - 1, place + by); near++) {
      most = Math.max(most, values[at + (near - place) * step]);
    }
    return most;
  });
  if (by < 1) return { data, width, height, channels };
  return { data: along(along(data, 1, width), width, height), width, height, channels };
}

function coloured(amount, { background, ink }) {
  return Math.round(background + (ink - background) * amount);
}

function within(value, most) {
  return Math.max(0, Math.min(Math.round(value), most));
}

function scaled(picture, factor) {
  const { width, height } = picture;
  return resized(picture, Math.max(1, Math.round(width * factor)), Math.max(1, Math.round(height * factor)));
}

function cropped({ data, width }, { left, top, right, bottom }) {
  const found = new Uint8Array((right - left) * (bottom - top));
  for (let y = top; y < bottom; y++) {
    found.set(data.subarray(y * width + left, y * width + right), (y - top) * (right - left));
  }
  return { data: found, width: right - left, height: bottom - top, channels: 1 };
}

/** A picture without its shadows, which are what is left of it in very few pixels. */
function evenlyLit({ data, width, height, channels }) {
  const few = resized({ data, width, height, channels }, SHADOWS, SHADOWS);
  const shadows = resized(few, width, height).data;
  const lit = data.map((value, at) => Math.max(0, Math.min(255, value - shadows[at] + 128)));
  return { data: lit, width, height, channels };
}

/** How much ink is where, from 0 to 255; what lies at the border is paper. */
function inkIn({ data, width, height }) {
  const threshold = otsu(data);
  const onLight = median(border(data, height, width)) > threshold;
  const isInk = (value) => value > threshold !== onLight;
  const [full, none] = [mean(data.filter(isInk)), mean(data.filter((value) => !isInk(value)))];
  const amount = (value) => Math.min(1, Math.max(0, (value - none) / (full - none || 1)));
  const found = data.map((value) => (isInk(value) ? 255 * amount(value) : 0));
  return { data: found, width, height, channels: 1 };
}

/** N. Otsu, A threshold selection method from gray-level histograms, 1979. */
function otsu(data) {
  const counts = new Float64Array(256);
  for (const value of data) counts[value]++;
  const all = data.reduce((a, b) => a + b, 0);
  let best = -1, threshold = 0, below = 0, sum = 0;
  for (let value = 0; value < 256; value++) {
    below += counts[value];
    sum += counts[value] * value;
    const above = data.length - below;
    const between = below && above ? below * above * (sum / below - (all - sum) / above) ** 2 : 0;
    if (between > best) [best, threshold] = [between, value];
  }
  return threshold;
}

/** The box that ink fills, its centre of mass, and how thick lines are; null without ink. */
function look(amounts, height, width, full = 1) {
  let left = width, top = height, right = 0, bottom = 0;
  let mass = 0, x = 0, y = 0, steps = 0;
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const at = row * width + column, amount = amounts[at];
      steps += Math.abs(amount - (column ? amounts[at - 1] : 0)) + (column === width - 1 ? amount : 0);
      steps += Math.abs(amount - (row ? amounts[at - width] : 0)) + (row === height - 1 ? amount : 0);
      mass += amount;
      x += amount * (column + 0.5);
      y += amount * (row + 0.5);
      if (amount <= FAINT * full) continue;
      [left, right] = [Math.min(left, column), Math.max(right, column + 1)];
      [top, bottom] = [Math.min(top, row), Math.max(bottom, row + 1)];
    }
  }
  if (right <= left) return null;
  // The steps along both axes are 4/π of the outline, by Crofton's formula; lines have two sides.
  const thickness = (2 * mass) / ((Math.PI / 4) * steps);
  const side = Math.max(right - left, bottom - top);
  return { left, top, right, bottom, side, x: x / mass, y: y / mass, thickness };
}

function border(data, height, width) {
  return data.filter((_, at) => {
    const x = at % width, y = (at - x) / width;
    return x === 0 || y === 0 || x === width - 1 || y === height - 1;
  });
}

function median(values) {
  return values.toSorted((a, b) => a - b)[values.length >> 1];
}

function mean(values) {
  return values.reduce((a, b) => a + b, 0) / Math.max(1, values.length);
}
