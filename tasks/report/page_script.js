// The page works without this: it filters, enlarges, compares and copies. Texts are set as text, never as HTML.
(() => {
  "use strict";
  const find = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const make = (tag, text = "", name = "") => {
    const element = document.createElement(tag);
    element.textContent = text;
    element.className = name;
    return element;
  };

  // --- copying: an address, or the query that shows a row
  const quoted = (text) => "'" + text.replaceAll("'", "''") + "'";
  const forShell = (text) => "'" + text.replaceAll("'", "'\\''") + "'";
  const queryOf = (uri, frame) =>
    `visionmill query ${forShell(document.body.dataset.output)} ` +
    forShell(`SELECT * FROM items WHERE uri = ${quoted(uri)} AND frame = ${frame}`);
  const copy = async (text, button) => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = make("textarea", text);
      (find("dialog[open]") ?? document.body).append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    const before = button.textContent;
    button.textContent = "copied";
    setTimeout(() => (button.textContent = before), 1200);
  };
  const copyButtons = (uri, frame) => {
    const place = make("span", "", "copy");
    for (const [name, text] of [["copy uri", uri], ["copy query", queryOf(uri, frame)]]) {
      const button = make("button", name);
      button.type = "button";
      button.title = text;
      button.addEventListener("click", () => copy(text, button));
      place.append(button);
    }
    return place;
  };
  all("figure[data-uri]").forEach((figure) =>
    find("figcaption", figure).append(copyButtons(figure.dataset.uri, figure.dataset.frame)));
  all("[data-copy]").forEach((code) => {
    const button = make("button", "copy");
    button.type = "button";
    button.addEventListener("click", () => copy(code.textContent, button));
    code.after(" ", button);
  });

  // --- filter: pictures and the list of items show what has the class, the score and the status
  const data = JSON.parse(find("#item-data")?.textContent ?? '{"rows": []}');
  const form = find("#filter");
  const wanted = () => ({
    name: form.elements.name.value,
    score: Number(form.elements.score.value),
    status: form.elements.status.value,
    text: form.elements.text.value.toLowerCase(),
  });
  const fits = (want, uri, status, facets) => {
    if (want.status && status !== want.status) return false;
    if (want.text && !uri.toLowerCase().includes(want.text)) return false;
    const scores = want.name ? [facets[want.name] ?? -1] : Object.values(facets);
    if (want.name || want.score > 0) return scores.some((score) => score >= want.score && score >= 0);
    return true;
  };
  const PAGE = 50;
  let shown = PAGE;
  const rowOf = ([uri, frame, status, classes, reason]) => ({
    uri: data.root + uri, frame, status: data.statuses[status], reason: reason < 0 ? "" : data.reasons[reason],
    facets: Object.fromEntries(classes.map(([index, score]) => [data.names[index], score / 100])),
  });
  const drawList = (rows) => {
    const body = find("#list tbody");
    body.replaceChildren(...rows.slice(0, shown).map((row) => {
      const line = make("tr");
      const place = make("td");
      place.append(make("code", row.uri + (row.frame ? `, frame ${row.frame}` : "")), copyButtons(row.uri, row.frame));
      const said = Object.entries(row.facets).sort((a, b) => b[1] - a[1])
        .map(([name, score]) => `${name} ${score.toFixed(2)}`).join(", ");
      line.append(place, make("td", row.status), make("td", row.reason || said || "nothing found", row.reason && "why"));
      return line;
    }));
    find("#list-count").textContent = `${rows.length} of ${data.rows.length} listed items`;
    find("#list-more").hidden = rows.length <= shown;
  };
  const filter = () => {
    const want = wanted();
    find("#score-said").textContent = want.score.toFixed(2);
    all("#pictures-body figure").forEach((figure) => {
      figure.hidden = !fits(want, figure.dataset.uri, figure.dataset.status, JSON.parse(figure.dataset.facets));
    });
    all("#pictures-body .group").forEach((group) => {
      group.hidden = all("figure", group).every((figure) => figure.hidden);
      if (group.hidden) find("video", group)?.pause();
    });
    const visible = all("#pictures-body figure").filter((figure) => !figure.hidden).length;
    find("#picture-count").textContent = `${visible} pictures`;
    drawList(data.rows.map(rowOf).filter((row) => fits(want, row.uri, row.status, row.facets)));
  };
  if (form) {
    form.hidden = false;
    find("#list").hidden = false;
    form.addEventListener("input", () => { shown = PAGE; filter(); });
    form.addEventListener("reset", () => setTimeout(() => { shown = PAGE; filter(); }));
    form.addEventListener("submit", (event) => event.preventDefault());
    find("#list-more").addEventListener("click", () => { shown += 10 * PAGE; filter(); });
    all("[data-show-status]").forEach((link) => link.addEventListener("click", () => {
      form.reset();
      form.elements.status.value = link.dataset.showStatus;
      setTimeout(filter);
    }));
    filter();
  }

  // --- the enlarged picture
  const viewer = find("#viewer");
  if (!viewer) return;
  const stage = find(".stage", viewer);
  let figures = [], place = 0, scale = 1, x = 0, y = 0, masks = true, timer = 0;
  const moved = () => {
    const inner = find("div", stage);
    if (inner) inner.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
    find("[data-do=zoom]", viewer).textContent = `${Math.round(100 * scale)} %`;
  };
  const draw = () => {
    const figure = figures[place];
    const inner = make("div");
    all("img", figure).forEach((img) => {
      const twin = img.cloneNode();
      twin.loading = "eager";
      if (twin.classList.contains("layer")) twin.hidden = !masks;
      inner.append(twin);
    });
    stage.replaceChildren(inner);
    find("[data-do=masks]", viewer).disabled = !find(".layer", inner);
    find("[data-do=masks]", viewer).setAttribute("aria-pressed", masks);
    find(".said", viewer).replaceChildren(
      make("strong", figure.dataset.uri + (Number(figure.dataset.frame) ? `, frame ${figure.dataset.frame}` : "")), " ",
      make("span", find(".what, .why", figure)?.textContent ?? "", "muted"), " ",
      copyButtons(figure.dataset.uri, figure.dataset.frame),
      make("span", ` ${place + 1} / ${figures.length}`, "muted"));
    moved();
  };
  const step = (by) => { place = (place + by + figures.length) % figures.length; draw(); };
  const fit = () => { scale = 1; x = y = 0; moved(); };
  const zoom = (factor) => {
    scale = Math.min(16, Math.max(1, scale * factor));
    if (scale === 1) x = y = 0;
    moved();
  };
  const play = () => {
    clearInterval(timer);
    const button = find("[data-do=play]", viewer);
    timer = button.textContent === "play" ? setInterval(() => step(1), 200) : 0;
    button.textContent = timer ? "pause" : "play";
  };
  const toggle = () => { masks = !masks; draw(); };
  const doings = {
    next: () => step(1), previous: () => step(-1), larger: () => zoom(1.5), smaller: () => zoom(1 / 1.5), zoom: fit,
    masks: toggle, play, close: () => viewer.close(),
  };
  const keys = {
    ArrowRight: "next", ArrowLeft: "previous", "+": "larger", "=": "larger", "-": "smaller", 0: "zoom", m: "masks",
    p: "play",
  };
  all("[data-do]", viewer).forEach((button) => button.addEventListener("click", () => doings[button.dataset.do]()));
  viewer.addEventListener("keydown", (event) => {
    if (keys[event.key] && !event.ctrlKey && !event.metaKey) {
      doings[keys[event.key]]();
      event.preventDefault();
    }
  });
  viewer.addEventListener("close", () => { if (timer) play(); figures[place]?.querySelector("a")?.focus(); });
  stage.addEventListener("wheel", (event) => { zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2); event.preventDefault(); },
    { passive: false });
  stage.addEventListener("pointerdown", (event) => { stage.setPointerCapture(event.pointerId); event.preventDefault(); });
  stage.addEventListener("pointermove", (event) => {
    if (!event.buttons || scale === 1) return;
    x += event.movementX;
    y += event.movementY;
    moved();
  });
  all("figure[data-uri] .frame > a:not(.close)").forEach((link) => link.addEventListener("click", (event) => {
    event.preventDefault();
    const figure = link.closest("figure");
    const among = figure.parentElement.classList.contains("strip") ? figure.parentElement : document;
    figures = all("figure[data-uri]", among).filter((one) => !one.hidden && find("img", one));
    place = figures.indexOf(figure);
    find("[data-do=play]", viewer).hidden = among === document;
    fit();
    draw();
    viewer.showModal();
    stage.focus();
  }));
})();
