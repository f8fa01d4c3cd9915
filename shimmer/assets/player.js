(() => { for (const box of document.querySelectorAll(".shimmer-player:not([data-ready])")) {
  const source = box.querySelector("script[type='application/json']");
  if (!source) continue;
  box.dataset.ready = "yes";
  const data = JSON.parse(source.textContent), last = data.frames.length - 1;
  const find = name => box.querySelector(name), make = (tag, where) => where.appendChild(document.createElement(tag));
  const canvas = find(".canvas"), slider = find("input"), button = find("button"), counter = find("output"), info = find(".info");
  let now = 0, timer = null;
  canvas.textContent = "";
  const cells = [];
  for (const word of data.words) {
    if (data.gaps[word[0]] && word[0]) canvas.append(" ");
    const group = make("span", canvas);
    group.className = "word";
    for (const i of word) {
      const cell = cells[i] = make("span", group);
      cell.dataset.w = data.frames.map(f => data.tokens[f[i][0]]).reduce((a, b) => b.length > a.length ? b : a);
      cell.onclick = () => { info.textContent = cell.title; };
    }
    make(data.breaks[word[word.length - 1]] ? "br" : "wbr", canvas);
  }
  const show = n => {
    now = Math.max(0, Math.min(last, n));
    const count = {written: 0, reopened: 0, open: 0};
    data.frames[now].forEach(([token, kind, held, was], i) => {
      const name = data.kinds[kind], cell = cells[i], text = data.tokens[token];
      count[name] += 1;
      cell.className = "tok " + name;
      cell.firstChild ? cell.firstChild.data = text : cell.append(text);
      cell.style.setProperty("--d", held === null ? 0 : 1 - held);
      cell.title = `position ${data.positions[i]}: ${name === "open" ? "open" : text} (${name}${was === null ? "" : ", was " + data.tokens[was]}${held === null ? "" : ", confidence " + held.toFixed(2)})`;
    });
    slider.value = now;
    slider.setAttribute("aria-valuetext", counter.value = `call ${data.calls[now]} of ${data.calls[last]}`);
    info.textContent = (now ? `written ${count.written}, reopened ${count.reopened}, ` : "the start: ") + `open ${count.open + count.reopened}` + (now === last ? `; stopped: ${data.stop}` : "");
  };
  const pause = () => { clearInterval(timer); timer = null; button.textContent = "Play"; };
  const play = () => {
    if (now === last) show(0);
    button.textContent = "Pause";
    timer = setInterval(() => { show(now + 1); if (now === last || !box.isConnected) pause(); }, data.milliseconds);
  };
  button.onclick = () => timer === null ? play() : pause();
  slider.oninput = () => { pause(); show(Number(slider.value)); };
  box.onkeydown = event => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const to = {ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: last}[event.key];
    if (to !== undefined) { pause(); show(to); }
    else if (event.key === " " && event.target !== button) button.onclick();
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  slider.max = last;
  show(0);
} })();
