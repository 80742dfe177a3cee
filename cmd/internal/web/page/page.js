"use strict";
// The page of vifshape web. Names are other people's to choose: they are only ever put in as
// text. What it keeps is bounded: the tree as it is, and a quarter of an hour of one branch.
(() => {
  const quarter = 15 * 60; // seconds that the graphs show
  const whyAgain = 20000; // ms between two explanations
  const $ = (id) => document.getElementById(id);

  // What there is, and what it does.
  let branches = []; // of all interfaces, parents first
  let byPath = new Map();
  let uses = new Map(); // row number to [row, bits, delay, drops, marks, backlog]
  let shown = []; // the branches that the search leaves
  let chosen = ""; // a path
  let direction = "send";
  let boot = "";
  let lastID = "";
  let past = empty(); // of the chosen branch in the direction
  let pastOf = {}; // whose it is, and which server's: { boot, direction, path }
  let fit = false;
  let rowHeight = 32; // more where both directions are shown

  function empty() {
    return { t: [], bits: [], delay: [], drops: [], marks: [], backlog: [] };
  }

  // Words for quantities: three digits, and units of a thousand.

  function digits(v) {
    return v >= 100 ? v.toFixed(0) : v >= 10 ? v.toFixed(1) : v.toFixed(2);
  }

  const bitUnits = [["Tbit/s", 1e12], ["Gbit/s", 1e9], ["Mbit/s", 1e6], ["kbit/s", 1e3], ["bit/s", 1]];
  const timeUnits = [["s", 1e6], ["ms", 1e3], ["µs", 1]]; // of microseconds
  const dropUnits = [["packets/s", 1]];

  function unitOf(units, most) {
    return units.find((u) => most >= u[1]) || units[units.length - 1];
  }

  function amount(units, v) {
    if (v === null || v === undefined) return "–";
    if (v === 0) return units === timeUnits ? "none" : "0";
    const [name, one] = unitOf(units, v);
    return (one === 1 && Number.isInteger(v) ? String(v) : digits(v / one)) + "\u202f" + name;
  }

  // exact has no more digits than a policy would.
  function exact(v) {
    const [name, one] = unitOf(bitUnits, v);
    return String(Math.round((v / one) * 1000) / 1000) + "\u202f" + name;
  }

  function short(v) {
    if (v === 0) return "0";
    const [name, one] = unitOf(bitUnits, v);
    return digits(v / one) + "\u202f" + name;
  }

  function bytes(v) {
    const [name, one] = unitOf([["GB", 1e9], ["MB", 1e6], ["kB", 1e3], ["B", 1]], v);
    return (one === 1 ? String(v) : digits(v / one)) + "\u202f" + name;
  }

  const clock = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
  const hour = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

  function element(name, className, text) {
    const e = document.createElement(name);
    if (className) e.className = className;
    if (text !== undefined) e.textContent = text;
    return e;
  }

  function set(e, text) {
    if (e.textContent !== text) e.textContent = text;
  }

  // The tree. Only the rows that can be seen are elements, and those are used again.

  const pool = [];

  function makeRow() {
    const e = element("div", "row");
    e.setAttribute("role", "treeitem");
    const name = element("span", "name");
    const bars = element("span", "bars");
    const numbers = element("span", "numbers");
    const bar = () => {
      const b = element("span", "bar");
      b.append(element("i"));
      return b;
    };
    bars.append(bar(), bar());
    numbers.append(element("span"), element("span"));
    e.append(name, bars, numbers);
    e.addEventListener("click", () => choose(shown[e.index].path));
    $("rows").append(e);
    return e;
  }

  function share(row) {
    const u = row && uses.get(row.id);
    return u ? Math.min(1, u[1] / Math.max(1, row.reach)) : 0;
  }

  function drawTree() {
    const view = $("tree");
    const first = Math.max(0, Math.floor(view.scrollTop / rowHeight) - 2);
    const count = Math.min(shown.length - first, Math.ceil((view.clientHeight || 600) / rowHeight) + 4);
    $("rows").style.height = shown.length * rowHeight + "px";
    let active = "";
    for (let i = 0; i < Math.max(count, pool.length); i++) {
      if (i >= count) {
        pool[i].hidden = true;
        pool[i].removeAttribute("id");
        continue;
      }
      if (!pool[i]) pool.push(makeRow());
      const e = pool[i], b = shown[first + i];
      const [name, bars, numbers] = e.children;
      const s = uses.get(b.sends.id), r = b.receives && uses.get(b.receives.id);
      e.hidden = false;
      e.index = first + i;
      e.id = "row-" + e.index;
      e.style.top = e.index * rowHeight + "px";
      e.className = "row" + (b.depth ? "" : " top") + (b.receives ? " both" : "") + ((s && s[3] > 0) || (r && r[3] > 0) ? " drops" : "");
      e.setAttribute("aria-level", b.depth + 1);
      e.setAttribute("aria-setsize", shown.length);
      e.setAttribute("aria-posinset", e.index + 1);
      e.setAttribute("aria-selected", b.path === chosen);
      if (b.path === chosen) active = e.id;
      name.style.paddingLeft = b.depth * 16 + "px";
      set(name, b.name);
      e.title = b.path;
      bars.children[0].firstChild.style.transform = "scaleX(" + share(b.sends) + ")";
      bars.children[1].hidden = !b.receives;
      bars.children[1].firstChild.style.transform = "scaleX(" + share(b.receives) + ")";
      const out = s ? s[1] : 0, into = r ? r[1] : 0;
      set(numbers.children[0], (b.receives ? "↑\u202f" : "") + short(out));
      numbers.children[0].className = out ? "out" : "none";
      numbers.children[1].hidden = !b.receives;
      set(numbers.children[1], "↓\u202f" + short(into));
      numbers.children[1].className = into ? "in" : "none";
    }
    if (active) view.setAttribute("aria-activedescendant", active);
    else view.removeAttribute("aria-activedescendant");
  }

  function search() {
    const word = $("find").value.trim().toLowerCase();
    shown = word ? branches.filter((b) => b.path.toLowerCase().includes(word)) : branches;
    const nothing = $("nothing");
    nothing.hidden = shown.length > 0;
    nothing.textContent = branches.length ? "No branch has that in its path." : "No interface is shaped here. vifshape init writes a first policy for this machine; Plan shows what one would change.";
    $("tree-view").className = branches.length ? "" : "empty";
    $("tree").hidden = shown.length === 0;
  }

  function choose(path, how) {
    chosen = path;
    location.replace("#" + encodeURIComponent(path));
    const b = byPath.get(path);
    if (direction === "receive" && b && !b.receives) direction = "send";
    const i = shown.indexOf(b), view = $("tree");
    if (how !== "stay" && i >= 0) {
      if (i * rowHeight < view.scrollTop) view.scrollTop = i * rowHeight;
      else if ((i + 1) * rowHeight > view.scrollTop + view.clientHeight) view.scrollTop = (i + 1) * rowHeight - view.clientHeight;
    }
    clearWhy();
    load();
    askWhySoon(400);
    draw();
  }

  function move(e) {
    if (e.ctrlKey || e.altKey || e.metaKey || !shown.length) return;
    const at = shown.findIndex((b) => b.path === chosen);
    const page = Math.max(1, Math.floor($("tree").clientHeight / rowHeight) - 1);
    const up = () => {
      for (let i = at - 1; i >= 0; i--) if (shown[i].depth < shown[at].depth) return i;
      return at;
    };
    const down = () => (at + 1 < shown.length && shown[at + 1].depth > shown[at].depth ? at + 1 : at);
    const steps = {
      ArrowDown: () => at + 1,
      ArrowUp: () => at - 1,
      PageDown: () => at + page,
      PageUp: () => at - page,
      Home: () => 0,
      End: () => shown.length - 1,
      ArrowLeft: () => (at < 0 ? 0 : up()),
      ArrowRight: () => (at < 0 ? 0 : down()),
    };
    if (!Object.hasOwn(steps, e.key)) return;
    e.preventDefault();
    const to = Math.min(shown.length - 1, Math.max(0, steps[e.key]()));
    if (shown[to].path !== chosen) choose(shown[to].path);
  }

  // The graphs.

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const plots = {};
  const sync = uPlot.sync("time");

  // times are the words below the last graph, without one that would stick out.
  function times(u, all, axis, space, step) {
    if (u !== plots.drops) return all.map(() => "");
    const form = step < 60 ? clock : hour, width = u.bbox.width / devicePixelRatio;
    return all.map((v) => (u.valToPos(v, "x") > width - 26 ? "" : form.format(new Date(v * 1000))));
  }

  // What each graph shows.
  const shows = { rate: ["bits"], delay: ["delay"], drops: ["drops", "marks"] };

  // makePlot makes a graph. units are those of its axis, top what that reaches.
  function makePlot(id, height, units, top, bottom, hooks) {
    let unit = units[units.length - 1];
    const stroke = () => colour(direction === "send" ? "--send" : "--receive");
    const line = (value) => ({ drops: colour("--bad"), marks: colour("--mark") })[value] || stroke();
    const axis = { stroke: () => colour("--quiet"), grid: { stroke: () => colour("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
    const u = new uPlot({
      width: Math.max(200, $(id).clientWidth),
      height: height,
      padding: [8, 8, bottom ? 0 : 4, 0],
      legend: { show: false },
      cursor: { sync: { key: sync.key }, drag: { x: false, y: false }, y: false, points: { size: 7 } },
      scales: { x: { time: true }, y: { range: (u, min, max) => [0, top(max || 0)] } },
      axes: [
        Object.assign({}, axis, { size: bottom ? 26 : 0, gap: 4, space: 70, values: times }),
        Object.assign({}, axis, {
          size: 52,
          gap: 6,
          space: 28,
          values: (u, all) => {
            unit = unitOf(units, all[all.length - 1]);
            set($(id + "-unit"), unit[0]);
            return all.map((v) => String(Number((v / unit[1]).toPrecision(4))));
          },
        }),
      ],
      series: [{}].concat(shows[id].map((value) => ({
        stroke: () => line(value), fill: () => line(value) + "22", width: 1.5, points: { show: false }, spanGaps: false, paths: uPlot.paths.stepped({ align: -1 }),
      }))),
      hooks: hooks || {},
    }, [[]].concat(shows[id].map(() => [])), $(id));
    plots[id] = u;
  }

  // ceiling is drawn over the rate, wherever the axis ends.
  function ceiling(u) {
    const b = byPath.get(chosen), row = b && (direction === "send" ? b.sends : b.receives);
    if (!row) return;
    const c = u.ctx, px = devicePixelRatio, box = u.bbox;
    const beyond = row.reach > u.scales.y.max;
    const y = beyond ? box.top + px : Math.round(u.valToPos(row.reach, "y", true));
    c.save();
    c.strokeStyle = colour("--ceiling");
    c.lineWidth = 1.5 * px;
    c.setLineDash([6 * px, 4 * px]);
    if (!beyond) {
      c.beginPath();
      c.moveTo(box.left, y);
      c.lineTo(box.left + box.width, y);
      c.stroke();
    }
    const text = "ceiling " + exact(row.reach) + (row.by === b.path ? "" : ", of " + row.by) + (beyond ? " ↑" : "");
    c.font = 12 * px + "px system-ui, sans-serif";
    c.textAlign = "right";
    c.textBaseline = beyond ? "top" : "bottom";
    c.lineJoin = "round";
    c.setLineDash([]);
    c.strokeStyle = colour("--surface");
    c.lineWidth = 4 * px;
    c.fillStyle = colour("--ceiling");
    const x = box.left + box.width - 4 * px, at = y + (beyond ? 2 : -4) * px;
    c.strokeText(text, x, at, box.width - 8 * px);
    c.fillText(text, x, at, box.width - 8 * px);
    c.restore();
  }

  function rateTop(max) {
    const b = byPath.get(chosen), row = b && (direction === "send" ? b.sends : b.receives);
    const most = fit || !row ? max : Math.max(max, row.reach);
    return Math.max(1000, most * 1.16); // with room for the words on the ceiling
  }

  makePlot("rate", 240, bitUnits, rateTop, false, { draw: [ceiling] });
  makePlot("delay", 110, timeUnits, (max) => Math.max(1000, max * 1.15), false);
  makePlot("drops", 110, dropUnits, (max) => Math.max(10, max * 1.15), true);
  plots.rate.hooks.setCursor = [() => drawNow()];

  new ResizeObserver(() => {
    for (const id in plots) {
      const w = $(id).clientWidth;
      if (w > 0 && w !== plots[id].width) plots[id].setSize({ width: w, height: plots[id].height });
    }
  }).observe($("branch"));

  function drawPlots() {
    const n = past.t.length;
    const now = n ? past.t[n - 1] : Date.now() / 1000;
    // As long as there is less, that is shown, down to what a few seconds are seen in.
    const from = Math.max(now - quarter, Math.min(n ? past.t[0] : now, now - 120));
    for (const id in plots) {
      plots[id].batch(() => {
        plots[id].setData([past.t].concat(shows[id].map((value) => past[value])), false);
        plots[id].setScale("x", { min: from, max: now });
      });
    }
  }

  // drawNow writes the values at the cursor, or else the latest.
  function drawNow() {
    const at = plots.rate.cursor.idx;
    const n = past.t.length;
    const i = at === null || at === undefined || at >= n ? n - 1 : at;
    const of = (list) => (i >= 0 ? list[i] : null);
    const b = byPath.get(chosen), row = b && (direction === "send" ? b.sends : b.receives);
    const bits = of(past.bits), waits = of(past.backlog);
    set($("rate-now"), amount(bitUnits, bits) + (row && bits !== null ? " · " + Math.round((100 * bits) / Math.max(1, row.reach)) + "\u202f%" : ""));
    set($("delay-now"), amount(timeUnits, of(past.delay)) + (waits ? " · " + bytes(waits) + " wait" : ""));
    const marks = of(past.marks);
    set($("drops-now"), amount(dropUnits, of(past.drops)) + (marks ? " · " + amount(dropUnits, marks) + " marked" : ""));
    set($("when"), i >= 0 ? (i === n - 1 ? "Latest, at " : "At ") + clock.format(new Date(past.t[i] * 1000)) : "");
  }

  // The past of the chosen branch, and what is added to it.

  function add(t, took, use) {
    const last = past.t[past.t.length - 1];
    if (last !== undefined && t <= last) return;
    const put = (t, v) => {
      past.t.push(t);
      ["bits", "delay", "drops", "marks", "backlog"].forEach((k, i) => past[k].push(v && v[i]));
    };
    if (last !== undefined && t - took - last > 2.5) put(last + 0.001, null); // nobody looked
    put(t, use ? use.slice(1) : [0, 0, 0, 0, 0]);
    const old = past.t.findIndex((x) => x > t - quarter - 60);
    if (old > 0) for (const k in past) past[k].splice(0, old);
  }

  let loading = 0;

  async function load() {
    const mine = ++loading;
    const of = { boot: boot, direction: direction, path: chosen };
    if (pastOf.direction !== direction || pastOf.path !== chosen) past = empty();
    pastOf = of;
    try {
      const r = await fetch("history?" + new URLSearchParams({ branch: of.path, direction: of.direction }));
      const h = r.ok ? await r.json() : null;
      if (!h || mine !== loading) return;
      const was = past; // what came meanwhile, and of a server before this one
      past = empty();
      const copy = (which) => {
        for (let i = 0; i < was.t.length; i++) if (which(was.t[i])) for (const k in past) past[k].push(was[k][i]);
      };
      const first = h.t.length ? (h.t[0] - h.d[0]) / 1000 : Infinity;
      copy((t) => t <= first);
      h.t.forEach((t, i) => add(t / 1000, h.d[i] / 1000, [0, h.bits[i], h.delay[i], h.drops[i], h.marks[i], h.backlog[i]]));
      const end = past.t.length ? past.t[past.t.length - 1] : 0;
      copy((t) => t > end);
      draw();
    } catch {
      // the stream says that nobody is there
    }
  }

  // What there is to say of the chosen branch.

  function drawBranch() {
    const b = byPath.get(chosen);
    $("branch").hidden = !b;
    if (!b) return;
    set($("path"), b.path);
    $("directions").hidden = !b.receives;
    $("send").setAttribute("aria-pressed", direction === "send");
    $("receive").setAttribute("aria-pressed", direction === "receive");
    const row = direction === "send" ? b.sends : b.receives;
    const facts = [["Guaranteed", exact(row.rate), ""], ["Ceiling", exact(row.ceil), row.reach < row.ceil ? "but " + row.by + " has " + exact(row.reach) : ""]];
    if (b.leaf) facts.push(["Priority", String(row.prio), ""]);
    if (b.limit) facts.push(["Limit of", b.limit, ""]);
    const key = JSON.stringify(facts), list = $("facts");
    if (list.key === key) return;
    list.key = key;
    list.replaceChildren(...facts.map(([term, text, note]) => {
      const d = element("div");
      const dd = element("dd", "", text);
      if (note) dd.append(" ", element("span", "note", note));
      d.append(element("dt", "", term), dd);
      return d;
    }));
  }

  // Why it is slow.

  let whyTimer = 0, whyAsked = 0;

  function clearWhy() {
    whyAsked++;
    set($("sentence"), "Looking at it for two seconds…");
    $("sentence").className = "waits";
    $("evidence").hidden = true;
  }

  function askWhySoon(ms) {
    clearTimeout(whyTimer);
    whyTimer = setTimeout(askWhy, ms);
  }

  async function askWhy() {
    const path = chosen, mine = ++whyAsked;
    if (!byPath.has(path)) return;
    if (document.hidden || $("tree-view").hidden) {
      askWhySoon(whyAgain);
      return;
    }
    try {
      const r = await fetch("explain?" + new URLSearchParams({ branch: path }));
      const text = await r.text();
      if (mine !== whyAsked || path !== chosen) return;
      const v = r.ok ? JSON.parse(text) : { sentence: text.trim(), evidence: [] };
      set($("sentence"), v.sentence);
      $("sentence").className = r.ok ? "" : "waits";
      $("evidence").hidden = v.evidence.length === 0;
      $("figures").replaceChildren(...v.evidence.map((line) => element("li", "", line)));
    } catch {
      // the stream says that nobody is there
    }
    if (mine === whyAsked) askWhySoon(whyAgain);
  }

  // Drawing happens once for each frame, and not while nobody sees it.

  let drawing = false;

  function draw() {
    if (drawing || document.hidden) return;
    drawing = true;
    requestAnimationFrame(() => {
      drawing = false;
      if ($("tree-view").hidden) return;
      drawBranch();
      drawTree();
      if (!$("branch").hidden) {
        drawPlots();
        drawNow();
      }
    });
  }

  // The stream.

  function takeTree(layout) {
    branches = [];
    for (const i of layout.interfaces) {
      for (const b of i.branches) {
        b.name = b.path.slice(b.path.lastIndexOf("/") + 1);
        branches.push(b);
      }
    }
    byPath = new Map(branches.map((b) => [b.path, b]));
    $("problems").replaceChildren(...layout.interfaces.filter((i) => i.problem).map((i) => {
      const p = element("p", "problem", i.problem);
      if (i.remedy) p.append(element("span", "", i.remedy));
      return p;
    }));
    rowHeight = branches.some((b) => b.receives) ? 42 : 32;
    document.documentElement.style.setProperty("--row", rowHeight + "px");
    search();
    if (!byPath.has(chosen)) {
      let wanted = "";
      try {
        wanted = decodeURIComponent(location.hash.slice(1));
      } catch {
        // not one of ours
      }
      if (byPath.has(wanted)) choose(wanted);
      else if (branches.length) choose(branches[0].path);
    } else if (pastOf.boot !== boot) load();
    draw();
  }

  function takeTick(tick) {
    uses = new Map(tick.rows.map((u) => [u[0], u]));
    const b = byPath.get(chosen), row = b && (direction === "send" ? b.sends : b.receives);
    if (row) add(tick.t / 1000, tick.d / 1000, uses.get(row.id));
    draw();
  }

  function say(how, text) {
    $("state").className = how;
    set($("state-text"), text);
  }

  let wait = 2000;

  function connect() {
    const source = new EventSource("events" + (lastID ? "?" + new URLSearchParams({ last: lastID }) : ""));
    source.addEventListener("hello", (e) => {
      const h = JSON.parse(e.data);
      if (boot !== h.boot) code = ""; // another server has another one
      boot = h.boot;
      writable = h.write;
      drawWrite();
      set($("version"), h.version);
      say("live", "live");
      wait = 2000;
    });
    source.addEventListener("waits", (e) => takeWaits(JSON.parse(e.data)));
    source.addEventListener("tree", (e) => takeTree(JSON.parse(e.data)));
    source.addEventListener("tick", (e) => {
      lastID = e.lastEventId;
      takeTick(JSON.parse(e.data));
    });
    source.onerror = async () => {
      say("lost", "cut off, trying again");
      if (source.readyState !== EventSource.CLOSED) return; // it tries again by itself
      source.close();
      try {
        const r = await fetch("", { method: "HEAD" });
        if (r.status === 401) say("lost", "signed out: open the link that vifshape web printed");
        else if (r.ok) say("lost", "too many pages are open: close one");
      } catch {
        // nobody is there
      }
      setTimeout(connect, wait);
      wait = Math.min(wait * 2, 15000);
    };
  }

  // The plan of a policy.

  let planned = null; // what may be applied: { text, plan }

  function answered(answer, how) {
    const out = $("plan");
    out.className = answer.wrong ? "wrong" : how;
    out.textContent = answer.text.trimEnd();
    out.hidden = !out.textContent;
  }

  async function askPlan() {
    const button = $("ask-plan"), asked = $("policy").value;
    if (button.disabled) return;
    button.disabled = true;
    planned = null;
    drawWrite();
    try {
      const r = await fetch("plan", { method: "POST", headers: { "Content-Type": "text/plain" }, body: asked });
      const text = await r.text();
      const answer = r.ok ? JSON.parse(text) : { text: text, wrong: true };
      answered(answer, "");
      if (answer.plan && $("policy").value === asked) planned = { text: asked, plan: answer.plan };
    } catch {
      answered({ text: "The server is not there.", wrong: true });
    }
    button.disabled = false;
    drawWrite();
  }

  // Writing, where the server does. The code that it takes is kept here and nowhere else.

  let writable = 0; // ms after which what is applied goes back; 0: the server writes nothing
  let code = "";
  let applying = false;

  function drawWrite() {
    $("until-applied").hidden = !writable;
    $("apply-row").hidden = !writable || !planned || (waiting !== null && !applying);
    $("apply").disabled = applying;
    set($("apply"), "Apply, and go back in " + span(writable) + " unless kept");
  }

  function span(ms) {
    const s = Math.ceil(ms / 1000);
    return s < 100 ? s + "\u202fs" : Math.floor(s / 60) + "\u202fmin" + (s % 60 ? " " + (s % 60) + "\u202fs" : "");
  }

  // askCode asks for the code, "" if it is not given.
  function askCode(what, wrong) {
    const d = $("ask-code");
    if (d.open) return Promise.resolve("");
    set($("code-ok"), what);
    set($("code-wrong"), wrong);
    $("code").value = "";
    d.showModal();
    $("code").focus();
    return new Promise((done) => {
      d.addEventListener("close", () => {
        done(d.returnValue);
        d.returnValue = "";
        $("code").value = "";
      }, { once: true });
    });
  }

  function giveCode() {
    const given = $("code").value.replace(/[^0-9A-Za-z]/g, "");
    if (given) $("ask-code").close(given);
    else $("code").focus();
  }

  // write asks for something that takes the code. Its answer is null where that is not given.
  async function write(path, what, body, plan, sending) {
    for (let wrong = ""; ; ) {
      if (!code) code = await askCode(what, wrong);
      if (!code) return null;
      try {
        const headers = { "Content-Type": "text/plain", "Vifshape-Code": code };
        if (plan) headers["Vifshape-Plan"] = plan;
        if (sending) sending();
        const r = await fetch(path, { method: "POST", headers: headers, body: body });
        const text = await r.text();
        if (r.status !== 403) return r.ok ? JSON.parse(text) : { text: text, wrong: true };
        wrong = text.trim();
        code = "";
      } catch {
        return { text: "No answer came from the server.", wrong: true };
      }
    }
  }

  async function apply() {
    if (applying || !planned) return;
    applying = true;
    drawWrite();
    const late = $("apply-late");
    let timer = 0;
    const answer = await write("apply", "Apply", planned.text, planned.plan, () => {
      set($("apply"), "Applying…");
      expecting = true;
      clearTimeout(timer); // of a wrong code
      timer = setTimeout(() => {
        set(late, "No answer yet. If the policy has cut off this page, what was there before comes back by itself, " + span(writable) + " after it was applied.");
        late.hidden = $("ask-code").open;
      }, 3000);
    });
    clearTimeout(timer);
    late.hidden = true;
    applying = false;
    if (answer) {
      planned = null; // it is applied, or has become another one
      if (expecting || answer.wrong) answered(answer, "prose"); // else it came late, and says no news
    }
    expecting = false;
    drawWrite();
  }

  // The apply that waits to be confirmed, whoever has made it.

  let waiting = null; // { id, names, until: of performance.now() }
  let clockwork = 0;
  let seen = ""; // the id of the last that was told of
  let expecting = false; // what was sent from here, of which nothing is known yet

  function takeWaits(v) {
    const news = expecting && v.outcome && v.id !== seen;
    if (v.id) seen = v.id;
    if (v.left) {
      waiting = { id: v.id, names: v.names, until: performance.now() + v.left };
      set($("waits-more"), writable ? v.text + "." : v.text + ": " + v.remedy + ".");
      $("keep").disabled = $("back").disabled = false;
      if (!clockwork) clockwork = setInterval(drawWaits, 250);
    } else if (waiting || news) {
      expecting = false;
      $("waits").hidden = false;
      $("waits-what").setAttribute("role", "status");
      set($("waits-what"), v.outcome || waiting.names + " waits no more to be confirmed.");
      set($("waits-more"), "");
      waiting = null;
      if ($("plan").className === "prose") $("plan").hidden = true; // which said that it goes back
      clearInterval(clockwork);
      clockwork = 0;
    }
    drawWaits();
    drawWrite();
  }

  function drawWaits() {
    const left = waiting ? waiting.until - performance.now() : 0;
    if (waiting) {
      $("waits").hidden = false;
      $("waits-what").setAttribute("role", "timer");
      set($("waits-what"), left > 0 ? waiting.names + " goes back in " + span(left) + " to what it was" + (writable ? ", unless you keep it." : ".") : "The time is over: " + waiting.names + " goes back to what it was.");
    }
    $("waits-do").hidden = !waiting || left <= 0 || !writable;
    $("waits-close").hidden = waiting !== null;
    document.title = waiting && left > 0 ? span(left) + " – vifshape" : "vifshape";
  }

  async function end(path, what) {
    if (!waiting || $("keep").disabled) return;
    $("keep").disabled = $("back").disabled = true;
    const id = waiting.id;
    const answer = await write(path, what, id);
    if (waiting && waiting.id === id) {
      $("keep").disabled = $("back").disabled = false;
      if (answer && answer.text) set($("waits-more"), answer.text.trimEnd());
    }
  }

  function view(plan) {
    $("tree-view").hidden = plan;
    $("plan-view").hidden = !plan;
    for (const [id, is] of [["to-tree", !plan], ["to-plan", plan]]) {
      if (is) $(id).setAttribute("aria-current", "page");
      else $(id).removeAttribute("aria-current");
    }
    if (plan) $("policy").focus();
    draw();
  }

  // What people do.

  function look(d) {
    if (direction === d) return;
    direction = d;
    load();
    draw();
  }

  $("tree").addEventListener("keydown", move);
  $("tree").addEventListener("scroll", draw, { passive: true });
  $("find").addEventListener("input", () => {
    search();
    $("tree").scrollTop = 0;
    draw();
  });
  $("find").addEventListener("keydown", (e) => {
    if (e.key === "Escape") {
      $("find").value = "";
      search();
      draw();
      $("tree").focus();
    } else if ((e.key === "Enter" || e.key === "ArrowDown") && shown.length) {
      e.preventDefault();
      if (!shown.some((b) => b.path === chosen)) choose(shown[0].path);
      $("tree").focus();
    }
  });
  document.addEventListener("keydown", (e) => {
    const typing = e.target instanceof HTMLTextAreaElement || e.target instanceof HTMLInputElement;
    if (e.key === "/" && !typing && !e.ctrlKey && !e.altKey && !e.metaKey && !$("tree-view").hidden) {
      e.preventDefault();
      $("find").focus();
    }
  });
  $("policy").addEventListener("input", () => {
    planned = null; // it is of another text
    drawWrite();
  });
  $("apply").addEventListener("click", apply);
  $("keep").addEventListener("click", () => end("keep", "Keep"));
  $("back").addEventListener("click", () => end("back", "Go back now"));
  $("waits-close").addEventListener("click", () => {
    $("waits").hidden = true;
  });
  $("code-ok").addEventListener("click", giveCode);
  $("code-cancel").addEventListener("click", () => $("ask-code").close(""));
  $("code").addEventListener("keydown", (e) => {
    if (e.key === "Enter") giveCode();
  });
  $("policy").addEventListener("keydown", (e) => {
    if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) askPlan();
  });
  $("ask-plan").addEventListener("click", askPlan);
  $("to-tree").addEventListener("click", () => view(false));
  $("to-plan").addEventListener("click", () => view(true));
  $("send").addEventListener("click", () => look("send"));
  $("receive").addEventListener("click", () => look("receive"));
  $("fit-box").addEventListener("change", (e) => {
    fit = e.target.checked;
    draw();
  });
  document.addEventListener("visibilitychange", () => {
    draw();
    if (!document.hidden) askWhySoon(400);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const id in plots) plots[id].redraw(false, true);
    draw();
  });
  addEventListener("hashchange", () => {
    try {
      const wanted = decodeURIComponent(location.hash.slice(1));
      if (wanted !== chosen && byPath.has(wanted)) choose(wanted);
    } catch {
      // not one of ours
    }
  });

  connect();
})();
