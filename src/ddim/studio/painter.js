// Paints a mask over a picture: with the mouse, a finger or a pen, or with the arrow keys and the space bar.
// The value of the component is { image: an address, or "shown" once it is here, or null; mask: a PNG that is white where
// it was painted, or null }. So the picture comes once, and is not sent back with every event of the page.
const canvas = element.querySelector("canvas");
const context = canvas.getContext("2d");
const brush = element.querySelector("input[type=range]");
const picture = new Image();
const mask = document.createElement("canvas");
mask.getContext("2d", { willReadFrequently: true });
const tinted = document.createElement("canvas"); // the mask in colour
let strokes = []; // of the mask before each stroke, to take them back
let at = null; // where the keyboard's brush is
let last = null; // where the stroke is

const radius = () => (Number(brush.value) / 100) * Math.max(mask.width, mask.height) * 0.5;

function show() {
  context.imageSmoothingEnabled = false;
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  const colour = tinted.getContext("2d");
  colour.globalCompositeOperation = "copy";
  colour.drawImage(mask, 0, 0);
  colour.globalCompositeOperation = "source-in";
  colour.fillStyle = "#d946ef";
  colour.fillRect(0, 0, tinted.width, tinted.height);
  context.globalAlpha = 0.6;
  context.drawImage(tinted, 0, 0, canvas.width, canvas.height);
  context.globalAlpha = 1;
  if (at !== null && document.activeElement === canvas) {
    const scale = canvas.width / mask.width;
    context.strokeStyle = "#d946ef";
    context.lineWidth = 2;
    context.beginPath();
    context.arc(at.x * scale, at.y * scale, Math.max(radius() * scale, 3), 0, 2 * Math.PI);
    context.stroke();
  }
}

function paint(from, to) {
  const pen = mask.getContext("2d");
  pen.strokeStyle = pen.fillStyle = "#ffffff";
  pen.lineWidth = 2 * radius();
  pen.lineCap = "round";
  pen.beginPath();
  pen.moveTo(from.x, from.y);
  pen.lineTo(to.x + 0.01, to.y);
  pen.stroke();
  show();
}

function keep() {
  const some = mask.getContext("2d").getImageData(0, 0, mask.width, mask.height).data.some((value) => value > 0);
  props.value = { ...props.value, mask: some ? mask.toDataURL("image/png") : null };
}

function begin() {
  strokes.push(mask.getContext("2d").getImageData(0, 0, mask.width, mask.height));
  strokes = strokes.slice(-20);
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  return {
    x: ((event.clientX - box.left) / box.width) * mask.width,
    y: ((event.clientY - box.top) / box.height) * mask.height,
  };
}

canvas.addEventListener("pointerdown", (event) => {
  if (!mask.width || event.button !== 0) return;
  canvas.setPointerCapture(event.pointerId);
  begin();
  last = place(event);
  paint(last, last);
});
canvas.addEventListener("pointermove", (event) => {
  if (last === null) return;
  const next = place(event);
  paint(last, next);
  last = next;
});
for (const end of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(end, () => {
    if (last === null) return;
    last = null;
    keep();
  });
}
canvas.addEventListener("keydown", (event) => {
  if (!mask.width) return;
  const step = Math.max(1, Math.round(Math.max(mask.width, mask.height) / 32));
  const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
  at = at ?? { x: mask.width / 2, y: mask.height / 2 };
  if (event.key in moves) {
    at = {
      x: Math.min(Math.max(at.x + moves[event.key][0], 0), mask.width),
      y: Math.min(Math.max(at.y + moves[event.key][1], 0), mask.height),
    };
    show();
  } else if (event.key === " ") {
    begin();
    paint(at, at);
    keep();
  } else return;
  event.preventDefault();
});
canvas.addEventListener("focus", show);
canvas.addEventListener("blur", show);
brush.addEventListener("input", show);
element.querySelector("[data-do=undo]").addEventListener("click", () => {
  const before = strokes.pop();
  if (before === undefined) return;
  mask.getContext("2d").putImageData(before, 0, 0);
  show();
  keep();
});
element.querySelector("[data-do=clear]").addEventListener("click", () => {
  if (!mask.width) return;
  begin();
  mask.getContext("2d").clearRect(0, 0, mask.width, mask.height);
  show();
  keep();
});

picture.addEventListener("load", () => {
  for (const each of [mask, tinted]) [each.width, each.height] = [picture.naturalWidth, picture.naturalHeight];
  const scale = Math.max(1, Math.floor(512 / Math.max(mask.width, mask.height)));
  [canvas.width, canvas.height] = [mask.width * scale, mask.height * scale];
  strokes = [];
  at = null;
  element.querySelector(".painter").hidden = false;
  show();
});
function load() {
  const address = props.value?.image ?? null;
  if (address === null) {
    element.querySelector(".painter").hidden = true;
    mask.width = 0;
  } else if (address !== "shown") {
    picture.src = address;
    props.value = { image: "shown", mask: null };
  }
}
watch("value", load);
load();
