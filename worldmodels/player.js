const NAMES = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down" };

function element(tag, parent, properties) {
  const made = Object.assign(document.createElement(tag), properties);
  parent.appendChild(made);
  return made;
}

function render({ model, el }) {
  const root = element("div", el, { className: "dream-player", tabIndex: 0 });
  const picture = element("img", root, { alt: "what M dreams now, decoded by V", draggable: false });
  const panel = element("div", root, { className: "panel" });
  const rows = {};
  const table = element("table", panel, {});
  for (const name of ["step", "reward", "return", "done", "frames/s"]) {
    const row = element("tr", table, {});
    element("td", row, { textContent: name === "done" ? "probability of the end" : name });
    rows[name] = element("td", row, { className: name.replace("/", "-"), textContent: "" });
  }
  const label = element("label", panel, { textContent: "temperature " });
  const shown = element("span", label, { className: "tau" });
  const range = { type: "range", min: 0.1, max: 2, step: 0.05, value: model.get("temperature") };
  const slider = element("input", label, { ...range, className: "temperature" });
  const takes = element("label", panel, { textContent: " C drives" });
  const box = element("input", takes, { type: "checkbox", className: "controller", disabled: !model.get("has_controller") });
  takes.prepend(box);
  const buttons = element("div", panel, { className: "keys" });
  const held = new Set();
  const places = [["up", "↑", 2, 1], ["left", "←", 1, 2], ["down", "↓", 2, 2], ["right", "→", 3, 2]];
  for (const [name, sign, column, line] of places) {
    const button = element("button", buttons, { textContent: sign, ariaLabel: name });
    button.style.gridColumn = column; button.style.gridRow = line;
    button.addEventListener("mousedown", event => event.preventDefault());  // or the focus would go to the button
    button.addEventListener("pointerdown", () => { root.focus(); held.add(name); });
    for (const end of ["pointerup", "pointerleave", "pointercancel"]) button.addEventListener(end, () => held.delete(name));
  }
  const again = element("button", panel, { textContent: "Begin a new dream", className: "reset" });
  const note = element("div", panel, { className: "note", textContent: "Click on the picture, then use the arrow keys." });

  let over = false, fresh = true, asked = 0, pace = 0, last = 0;
  const tick = () => {
    if (over || asked > 1) return;  // one frame on its way while another is drawn
    asked += 1;
    model.send({ type: "tick", keys: [...held], temperature: Number(slider.value), controller: box.checked, reset: fresh });
    fresh = false;
  };
  const heard = (message, buffers) => {
    asked -= 1;
    if (message.type === "error") { over = true; note.textContent = message.text; }
    if (message.type !== "frame" || over) return;
    const url = URL.createObjectURL(new Blob([buffers[0]], { type: "image/png" }));
    picture.onload = () => URL.revokeObjectURL(url);
    picture.src = url;
    root.dataset.step = message.step;
    root.dataset.wheel = message.wheel;
    for (const name of ["step", "reward", "return", "done"]) rows[name].textContent = message[name];
    shown.textContent = Number(slider.value).toFixed(2);
    const now = performance.now(), since = now - last;
    if (last) pace = pace ? 0.95 * pace + 0.05 * since : since;  // milliseconds from frame to frame
    last = now;
    rows["frames/s"].textContent = pace ? (1000 / pace).toFixed(0) : "";
    over = message.over && !fresh;
    note.textContent = over ? "The dream is over." : "Click on the picture, then use the arrow keys.";
  };
  const reset = () => { fresh = true; over = false; root.focus(); };
  model.on("msg:custom", heard);
  again.addEventListener("click", reset);
  picture.addEventListener("click", () => root.focus());
  root.addEventListener("keydown", event => {
    if (!(event.key in NAMES) || event.target === slider) return;
    held.add(NAMES[event.key]); event.preventDefault(); event.stopPropagation();
  });
  root.addEventListener("keyup", event => { if (event.key in NAMES) { held.delete(NAMES[event.key]); event.stopPropagation(); } });
  root.addEventListener("focusout", event => { if (!root.contains(event.relatedTarget)) held.clear(); });
  const clock = setInterval(tick, 1000 / model.get("fps"));
  return () => { clearInterval(clock); model.off("msg:custom", heard); };
}

export default { render };
