// Shows one step of a recorded run: the slider, the arrow keys and the play button say which.
let timer = null;

const parts = () => {
  const scrubber = element.querySelector(".scrubber");
  return scrubber && { scrubber, slider: scrubber.querySelector("input[type=range]"), play: scrubber.querySelector(".play") };
};

const show = (place) => {
  const { scrubber, slider } = parts();
  slider.value = place;
  for (const section of scrubber.querySelectorAll(".moment")) {
    section.hidden = section.dataset.place !== slider.value;
    if (section.hidden) continue;
    slider.setAttribute("aria-valuetext", section.dataset.said);
    scrubber.querySelector(".where").textContent = section.dataset.said;
  }
};

const stop = () => {
  clearInterval(timer);
  timer = null;
  const found = parts();
  if (!found) return;
  found.play.textContent = "▶";
  found.play.setAttribute("aria-label", "Play the steps");
};

const start = () => {
  const { slider, play } = parts();
  const most = Number(slider.max);
  if (Number(slider.value) >= most) show(0);
  play.textContent = "❚❚";
  play.setAttribute("aria-label", "Pause");
  timer = setInterval(
    () => {
      const found = parts();
      const next = found ? Number(found.slider.value) + 1 : Infinity;
      if (next > most || !element.isConnected) return stop();
      show(next);
      if (next === most) stop();
    },
    Math.min(600, Math.max(60, 5000 / most)),
  );
};

element.addEventListener("input", (event) => {
  if (!event.target.matches(".scrubber input[type=range]")) return;
  stop();
  show(event.target.value);
});

element.addEventListener("click", (event) => {
  if (event.target.closest(".scrubber .play")) timer === null ? start() : stop();
});

// The arrows also move it where nothing else is there that would use them.
document.addEventListener("keydown", (event) => {
  const found = element.isConnected && element.offsetParent !== null && parts();
  const at = document.activeElement;
  if (!found || at === found.slider || event.ctrlKey || event.metaKey || event.altKey) return;
  if (at !== document.body && !element.contains(at) && !at.matches("button.main-button")) return;
  const now = Number(found.slider.value);
  const wanted = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: Number(found.slider.max) }[event.key];
  if (wanted === undefined) return;
  event.preventDefault();
  stop();
  show(Math.min(Number(found.slider.max), Math.max(0, wanted)));
});

// Another run: at its end.
watch("value", () => {
  stop();
  const found = parts();
  if (found) show(found.slider.getAttribute("value"));
});
