"use strict";
// Captions and details are data of unknown origin: they only ever become text nodes.
const data = JSON.parse(document.getElementById("data").textContent);
const samples = data.samples;
const PAGE = 60;
const byId = (id) => document.getElementById(id);
const state = { query: "", facets: {}, mark: "", sort: "", down: true, least: null, most: null };
let shown = [], page = 0, current = -1;

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((child) => child !== null));
  return made;
}

// --- marks -------------------------------------------------------------------------------------

const storageKey = "triplet-inspect " + data.title + " " + samples.length + " " + (samples[0] || {}).key;
const identity = (sample) => sample.shard + "\n" + sample.key;
let marks = {}, undo = [];
try { marks = JSON.parse(localStorage.getItem(storageKey)) || {}; } catch { /* private browsing: kept while open */ }

function keepMarks() {
  try { localStorage.setItem(storageKey, JSON.stringify(marks)); } catch { /* as above */ }
  const found = Object.values(marks), bad = found.filter((mark) => mark === "bad").length;
  byId("download").disabled = !found.length;
  byId("download").textContent = found.length
    ? "Save marks (" + bad + " bad, " + (found.length - bad) + " good)" : "Save marks";
}

function setMark(number, mark) {
  const key = identity(samples[number]), before = marks[key];
  if (mark === null || before === mark) delete marks[key]; else marks[key] = mark;
  undo.push([number, before]);
  keepMarks();
  showMark(number);
  byId("said").textContent = "marked " + (marks[key] || "not at all");
}

function showMark(number) {
  const card = document.querySelector('#cards [data-number="' + number + '"]'), mark = marks[identity(samples[number])];
  if (!card) return;
  for (const kind of ["good", "bad"]) {
    card.classList.toggle(kind, mark === kind);
    card.querySelector("button." + kind).setAttribute("aria-pressed", mark === kind);
  }
}

function marksAsCsv() {
  const quoted = (text) => '"' + text.replaceAll('"', '""') + '"';
  const rows = samples.filter((sample) => marks[identity(sample)])
    .map((sample) => [quoted(sample.key), marks[identity(sample)], quoted(sample.shard)].join(","));
  return ["key,mark,shard", ...rows].join("\n") + "\n";
}

function download() {
  const url = URL.createObjectURL(new Blob([marksAsCsv()], { type: "text/csv" }));
  element("a", { href: url, download: "marks.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

// --- a sample ----------------------------------------------------------------------------------

function source(number, half) {
  if (data.folder) return encodeURIComponent(data.folder) + "/" + Math.floor(number / 1000) + "/" + number + (half ? "n" : "") + ".webp";
  const text = byId("t" + number); // not there while the rest of a large page is still being read
  return text ? "data:image/webp;base64," + text.textContent.split(" ")[half] : null;
}

function frame(number, half) {
  const image = (samples[number].images || [])[half];
  if (!image) return null;
  if (typeof image === "string") return element("div", { className: "frame none", title: image }, "This image cannot be decoded");
  const caption = (half ? samples[number].negatives : samples[number].captions) || [[""]];
  const picture = element("img", {
    loading: "lazy", decoding: "async", width: image[0], height: image[1], alt: caption[0].join(""),
  });
  const url = source(number, half);
  if (url) picture.src = url;
  else document.addEventListener("DOMContentLoaded", () => { picture.src = source(number, half); });
  const button = element("button", { className: "frame", title: image[0] + " × " + image[1] + " pixels" }, picture);
  button.tabIndex = -1;
  button.setAttribute("aria-label", "Enlarge: " + picture.alt);
  button.onclick = () => enlarge(number);
  return button;
}

function pieces(parts, kind) {
  return parts.filter(Boolean).length
    ? parts.map((part, place) => (place % 2 ? element("mark", { className: kind }, part) : part)) : ["no caption"];
}

function half(number, negative) {
  const sample = samples[number], captions = (negative ? sample.negatives : sample.captions) || [];
  const kind = negative ? "new" : "gone", tags = negative ? sample.categories || [] : [];
  const others = captions.slice(1).map((caption, place) =>
    element("li", {}, ...pieces(caption, kind), " ", tags.length > 1 && tags[place + 1] ? element("span", { className: "tag" }, tags[place + 1]) : null));
  return element("section", { className: "half" },
    element("h2", {}, data.labels[negative ? 1 : 0]),
    frame(number, negative ? 1 : 0),
    captions.length ? element("p", {}, ...pieces(captions[0], kind)) : null,
    moreCaptions(element("ul", {}, ...others), others.length));
}

function moreCaptions(list, length) {
  if (length <= 3) return length ? list : null;
  return element("details", { className: "more" }, element("summary", {}, length + " more captions"), list);
}

const written = (value) => (Number.isInteger(value) ? String(value) : value.toFixed(3));

function similarityTable(label, rows) {
  // what each row must prefer is on the diagonal
  const cells = (row, place) => row.map((value, column) => {
    const best = value === Math.max(...row) && row[0] !== row[1];
    const kind = best ? (column === place ? "hit" : "miss") : "";
    return element("td", { className: kind, title: best ? "preferred" : "" }, value.toFixed(3) + (best ? (column === place ? " ✓" : " ✗") : ""));
  });
  const names = ["image", "negative image"];
  return element("table", { className: "similarities" },
    element("caption", { className: "hidden" }, "Cosine similarities under " + label),
    element("tr", {}, element("th", { scope: "col" }, label), element("th", { scope: "col" }, "caption"), element("th", { scope: "col" }, "negative caption")),
    ...rows.map((row, place) => element("tr", {}, element("th", { scope: "row" }, names[place]), ...cells(row, place))));
}

function facts(sample) {
  const found = Object.entries(sample.facets || {}).map(([name, value]) =>
    element("span", { className: "tag" }, name.replaceAll("_", " ") + " ", element("b", {}, value)));
  for (const [name, value] of Object.entries(sample.scores || {})) {
    found.push(element("span", { className: "tag score" }, name.replaceAll("_", " ") + " ", element("b", {}, written(value))));
  }
  return found.length ? element("div", { className: "facts" }, ...found) : null;
}

function actions(number) {
  const sample = samples[number];
  const button = (mark, text) => {
    const made = element("button", { className: mark, onclick: () => { current = number; setMark(number, mark); } }, text);
    made.setAttribute("aria-keyshortcuts", mark[0]);
    return made;
  };
  return element("div", { className: "actions" },
    element("details", {},
      element("summary", { title: "Details of " + sample.key }, sample.key + " · " + sample.shard),
      element("pre", {}, JSON.stringify(sample.details || {}, null, 1))),
    button("good", "Good"), button("bad", "Bad"));
}

function card(number) {
  const sample = samples[number], second = sample.negatives || (sample.images || [])[1];
  const parts = [
    element("div", { className: "pair" + (second ? "" : " single") }, half(number, false), second ? half(number, true) : null),
    sample.notes ? element("ul", { className: "notes" }, ...sample.notes.map((note) => element("li", {}, note))) : null,
    ...Object.entries(sample.similarities || {}).map(([label, rows]) => similarityTable(label, rows)),
    facts(sample), actions(number),
  ];
  const made = element("article", { className: "card", tabIndex: -1 }, ...parts);
  made.dataset.number = number;
  made.setAttribute("aria-label", "Sample " + sample.key);
  made.addEventListener("focusin", () => { current = number; });
  return made;
}

function enlarge(number) {
  const box = byId("large"), made = card(number);
  made.querySelector(".actions").remove();
  box.querySelector("div").replaceChildren(made);
  box.showModal();
}

// --- filtering and pages -----------------------------------------------------------------------

function searchText(sample) {
  if (!sample.text) {
    sample.text = [sample.key, ...[...(sample.captions || []), ...(sample.negatives || [])].map((c) => c.join("")), ...(sample.notes || [])].join("\n").toLowerCase();
  }
  return sample.text;
}

function fits(sample) {
  if (state.query && !state.query.split(/\s+/).every((word) => searchText(sample).includes(word))) return false;
  for (const [name, value] of Object.entries(state.facets)) if ((sample.facets || {})[name] !== value) return false;
  if (state.mark && (marks[identity(sample)] || "none") !== state.mark) return false;
  if (state.sort && (state.least !== null || state.most !== null)) {
    const score = (sample.scores || {})[state.sort];
    if (score === undefined || (state.least !== null && score < state.least) || (state.most !== null && score > state.most)) return false;
  }
  return true;
}

function filter() {
  shown = [...samples.keys()].filter((number) => fits(samples[number]));
  if (state.sort) {
    const score = (n) => { const s = (samples[n].scores || {})[state.sort]; return s === undefined ? NaN : s; };
    const sign = state.down ? -1 : 1;
    shown.sort((a, b) => (isNaN(score(a)) - isNaN(score(b))) || sign * (score(a) - score(b)) || a - b);
  } else if (!state.down) shown.reverse();
  const all = samples.length.toLocaleString("en");
  byId("count").textContent = shown.length === samples.length ? all + " samples" : shown.length.toLocaleString("en") + " of " + all;
  byId("empty").hidden = shown.length > 0;
  byId("reset").hidden = !(state.query || state.mark || state.least !== null || state.most !== null || Object.keys(state.facets).length);
  show(0);
}

function show(number, focus) {
  const pages = Math.max(1, Math.ceil(shown.length / PAGE));
  page = Math.min(Math.max(number, 0), pages - 1);
  const numbers = shown.slice(page * PAGE, (page + 1) * PAGE);
  byId("cards").replaceChildren(...numbers.map((n) => element("li", {}, card(n))));
  numbers.forEach(showMark);
  byId("pager").hidden = pages < 2;
  byId("page").value = page + 1;
  byId("page").max = byId("pages").textContent = pages;
  byId("previous").disabled = page === 0;
  byId("next").disabled = page === pages - 1;
  current = -1;
  if (focus === undefined) window.scrollTo({ top: 0, behavior: "instant" });
  else if (numbers.length) select(numbers.at(focus));
}

function select(number) {
  const card = document.querySelector('#cards [data-number="' + number + '"]');
  if (!card) return;
  current = number;
  card.focus({ preventScroll: true });
  card.scrollIntoView({ block: "nearest" });
}

function step(by) {
  const place = shown.indexOf(current, page * PAGE);
  const next = current < 0 || place < 0 ? page * PAGE : place + by;
  if (next < 0 || next >= shown.length) return;
  if (Math.floor(next / PAGE) !== page) show(Math.floor(next / PAGE), by > 0 ? 0 : -1);
  else select(shown[next]);
}

// --- controls ----------------------------------------------------------------------------------

function countOf(name) {
  const counts = new Map();
  for (const sample of samples) {
    const value = (sample.facets || {})[name];
    if (value !== undefined) counts.set(value, (counts.get(value) || 0) + 1);
  }
  return [...counts].sort((a, b) => b[1] - a[1]);
}

function makeFacets() {
  const names = new Set(samples.flatMap((sample) => Object.keys(sample.facets || {})));
  for (const name of names) {
    const counts = countOf(name);
    if (counts.length < 2 && counts[0][1] === samples.length) continue;
    const choose = element("select", {}, element("option", { value: "" }, "all"),
      ...counts.map(([value, count]) => element("option", { value }, value + " (" + count.toLocaleString("en") + ")")));
    choose.id = "facet-" + name;
    choose.onchange = () => {
      if (choose.value) state.facets[name] = choose.value; else delete state.facets[name];
      filter();
    };
    byId("facets").append(element("label", { className: "field" }, name[0].toUpperCase() + name.slice(1), choose));
  }
}

function makeSorts() {
  const names = new Set(samples.flatMap((sample) => Object.keys(sample.scores || {})));
  for (const name of names) byId("sort").append(element("option", { value: name }, name.replaceAll("_", " ")));
}

function showRange() {
  const values = samples.map((sample) => (sample.scores || {})[state.sort]).filter((value) => value !== undefined);
  byId("range").hidden = !state.sort || !values.length;
  if (byId("range").hidden) return;
  const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
  const bins = new Array(40).fill(0), svg = byId("range").querySelector("svg");
  for (const value of values) bins[Math.min(39, Math.floor((40 * (value - low)) / (high - low || 1)))] += 1;
  const top = Math.max(...bins);
  svg.replaceChildren(...bins.map((count, place) => {
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect"), height = (20 * count) / top;
    for (const [name, value] of Object.entries({ x: place, y: 20 - height, width: 0.9, height })) bar.setAttribute(name, value);
    return bar;
  }));
  byId("range").querySelector("legend").textContent = "Range of " + state.sort.replaceAll("_", " ");
  for (const id of ["least", "most"]) Object.assign(byId(id), { min: low, max: high, value: id === "least" ? low : high });
  showLimits();
}

function showLimits() {
  byId("range").querySelector("output").textContent = written(+byId("least").value) + " – " + written(+byId("most").value);
}

function moveRange(event) {
  const [least, most] = [byId("least"), byId("most")];
  if (+least.value > +most.value) { // one pushes the other
    if (event.target === least) most.value = least.value; else least.value = most.value;
  }
  state.least = +least.value > +least.min ? +least.value : null;
  state.most = +most.value < +most.max ? +most.value : null;
  showLimits();
  filter();
}

function showDirection() {
  byId("direction").textContent = state.sort ? (state.down ? "highest first ↓" : "lowest first ↑") : (state.down ? "forwards ↓" : "backwards ↑");
}

function reset() {
  Object.assign(state, { query: "", facets: {}, mark: "", least: null, most: null });
  byId("search").value = byId("mark").value = "";
  for (const choose of byId("facets").querySelectorAll("select")) choose.value = "";
  showRange();
  filter();
}

let waiting;
byId("search").oninput = () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => { state.query = byId("search").value.trim().toLowerCase(); filter(); }, 150);
};
byId("mark").onchange = () => { state.mark = byId("mark").value; filter(); };
byId("sort").onchange = () => {
  Object.assign(state, { sort: byId("sort").value, least: null, most: null });
  showDirection(); showRange(); filter();
};
byId("direction").onclick = () => { state.down = !state.down; showDirection(); filter(); };
byId("least").oninput = byId("most").oninput = moveRange;
byId("reset").onclick = reset;
byId("toggle").onclick = () => byId("toggle").setAttribute("aria-expanded", byId("panel").classList.toggle("open"));
byId("previous").onclick = () => show(page - 1);
byId("next").onclick = () => show(page + 1);
byId("page").onchange = () => show(byId("page").value - 1);
byId("download").onclick = download;
byId("help").onclick = () => byId("shortcuts").showModal();
byId("clear").onclick = () => {
  if (!confirm("Forget all marks of this gallery?")) return;
  marks = {}; undo = []; keepMarks(); show(page);
};
for (const box of document.querySelectorAll("dialog")) {
  box.onclick = (event) => { if (event.target === box || event.target.hasAttribute("data-close")) box.close(); };
}

const keys = {
  j: () => step(1), k: () => step(-1), n: () => show(page + 1), p: () => show(page - 1),
  g: () => markAndGo("good"), b: () => markAndGo("bad"), u: takeBack,
  "/": () => byId("search").focus(), "?": () => byId("shortcuts").showModal(),
  Enter: () => { if (current >= 0) enlarge(current); },
};

function markAndGo(mark) {
  if (current < 0) return step(1);
  setMark(current, mark);
  step(1);
}

function takeBack() {
  const last = undo.pop();
  if (!last) return;
  setMark(last[0], last[1] || null);
  undo.pop();
  select(last[0]);
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input:not([type=range]), select, textarea");
  if (event.key === "Escape" && typing) return event.target.blur();
  if (typing || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.key === "Enter" && event.target.matches("button, a, summary")) return;
  if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
});

const ratios = samples.flatMap((s) => (s.images || []).filter(Array.isArray)).map(([w, h]) => w / h).sort((a, b) => a - b);
if (ratios.length) document.documentElement.style.setProperty("--ratio", Math.min(1.5, Math.max(0.8, ratios[ratios.length >> 1])));
makeFacets(); makeSorts(); showDirection(); keepMarks(); filter();
