// The script of a report: the figure, the parallel axes, and the tables that sort and filter.
// All data is in the element `report-data`; texts reach the page as text nodes, never as HTML.
"use strict";

(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("report-data").textContent);
  document.documentElement.classList.add("scripts");

  // ---- data ------------------------------------------------------------------------------------

  const columns = data.columns;
  const rows = Array.from({ length: data.size }, (_, row) => row);
  const columnOf = new Map(columns.map((column) => [column.name, column]));
  const status = columnOf.get("status");
  // Of joined runs, which of them a config is of; parentheses are in the name of no axis.
  const run = columnOf.get("(run)");
  const NONE = "(none)";
  const CONFIG = "(config)";
  const finished = rows.filter((row) => ["done", "diverged"].includes(textOf(status, row)));

  function textOf(column, row) {
    const value = column.values[row];
    if (value === null) return column.infinite?.[row] ?? "–";
    return valueText(column, value);
  }
  function valueText(column, value) {
    return column.categories ? column.categories[value] : format(value, column.digits, column.whole);
  }

  const floats = (text) => {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    return Float64Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
  };

  // By name of a variable, its curves by row: steps and values.
  const curvesOf = new Map();
  for (const { name, configs, sizes, shared, x, y } of data.curves) {
    const steps = floats(x);
    const values = floats(y);
    const own = new Map();
    let start = 0;
    configs.forEach((row, i) => {
      const end = start + sizes[i];
      own.set(row, {
        x: shared ? steps.subarray(0, sizes[i]) : steps.subarray(start, end),
        y: values.subarray(start, end),
      });
      start = end;
    });
    curvesOf.set(name, own);
  }

  const distinct = (column, among = rows) =>
    [...new Set(among.map((row) => column.values[row]))]
      .filter((value) => value !== null)
      .sort((a, b) => a - b);
  const axes = columns.filter((c) => c.role === "axis");
  const varied = axes.filter((c) => distinct(c).length > 1);
  // What colours and panels can tell apart.
  const groupings = [...varied, ...(run && distinct(run).length > 1 ? [run] : []), status];
  const numeric = columns.filter(
    (c) => !c.categories && (c.role === "result" || c.role === "timekey"),
  );
  const withValues = numeric.filter((c) => c.values.some((value) => value !== null));

  const hasDiverged = (row) => textOf(status, row) === "diverged";

  // A zipped axis has a column of its own besides those of its members.
  const combined = (column) => Boolean(column.members);

  const named = (row) => {
    const parts = varied.filter((c) => !combined(c)).map((c) => `${c.label} = ${textOf(c, row)}`);
    if (run) parts.push(`run ${textOf(run, row)}`);
    return parts.length ? parts : [`config ${row}`];
  };

  // ---- numbers as text -------------------------------------------------------------------------

  const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";
  const superscript = (n) =>
    (n < 0 ? "⁻" : "") + [...String(Math.abs(n))].map((digit) => SUPERSCRIPTS[digit]).join("");

  // As numerals.py writes them.
  function format(value, digits = 4, whole = false) {
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (Number.isInteger(value) && size < (whole ? 1e15 : 1e6)) return value.toLocaleString("en");
    if (size >= 1e6 || size < 1e-3) {
      const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
      return `${Number(mantissa)}·10${superscript(Number(exponent))}`;
    }
    return String(Number(value.toPrecision(digits)));
  }

  // What writes the ticks of an axis: with as many digits as tell them apart.
  function tickFormatter(ticks, log) {
    const texts = (digits) =>
      new Set(ticks.map((value) => format(Number(value.toPrecision(12)), digits)));
    let digits = 4;
    while (digits < 12 && texts(digits).size < ticks.length) digits++;
    return (value) => {
      const exponent = Math.round(Math.log10(Math.abs(value)));
      const isPower = log && Math.abs(value / 10 ** exponent - 1) < 1e-9;
      if (isPower && (exponent >= 4 || exponent <= -3)) return `10${superscript(exponent)}`;
      return format(Number(value.toPrecision(12)), digits);
    };
  }

  // ---- choices, which the address keeps --------------------------------------------------------

  const choices = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
  function choose(name, value) {
    if (value === "" || value === null || value === undefined) choices.delete(name);
    else choices.set(name, value);
    history.replaceState(null, "", `#${choices}`);
  }
  const chosen = (name, valid, otherwise) => {
    const value = choices.get(name);
    return value !== null && valid.includes(value) ? value : otherwise;
  };

  // ---- colours ---------------------------------------------------------------------------------

  const darkMode = matchMedia("(prefers-color-scheme: dark)");
  let printing = false;
  const isDark = () => darkMode.matches && !printing;
  // Those of Okabe and Ito, which colour-blind people can tell apart, for either background.
  const DISTINCT = {
    light: ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#1c2024", "#7a3b0c"],
    dark: ["#3f8fd6", "#ec6526", "#12a67b", "#dc8fb9", "#f0e442", "#8fd0f7", "#f4f4f2", "#e69f00"],
  };
  const VIRIDIS = [
    "#440154",
    "#472d7b",
    "#3b528b",
    "#2c728e",
    "#21918c",
    "#28ae80",
    "#5ec962",
    "#addc30",
    "#fde725",
  ];
  const style = () => {
    const own = getComputedStyle(document.documentElement);
    const read = (name) => own.getPropertyValue(name).trim();
    if (printing)
      return {
        text: "#1c2024",
        muted: "#5d6570",
        line: "#e4e7eb",
        accent: "#3361c4",
        back: "#ffffff",
      };
    return {
      text: read("--text"),
      muted: read("--muted"),
      line: read("--line"),
      accent: read("--accent"),
      back: read("--back"),
    };
  };

  function shade(share) {
    // The ends of the scale that cannot be read on the background are left out.
    const at = (isDark() ? 0.25 + 0.75 * share : 0.86 * share) * (VIRIDIS.length - 1);
    const low = Math.min(Math.floor(at), VIRIDIS.length - 2);
    const mix = [1, 3, 5].map((i) => {
      const [a, b] = [VIRIDIS[low], VIRIDIS[low + 1]].map((hex) =>
        parseInt(hex.slice(i, i + 2), 16),
      );
      return Math.round(a + (b - a) * (at - low))
        .toString(16)
        .padStart(2, "0");
    });
    return `#${mix.join("")}`;
  }

  // The groups of a colour: each with its label, its colour, and a test of rows.
  const MOST_GROUPS = 12;
  function groupsOf(column) {
    if (!column) return [{ label: "", colour: style().accent, has: () => true }];
    const values = distinct(column, finished);
    if (column.categories) {
      const palette = DISTINCT[isDark() ? "dark" : "light"];
      return values.map((value, i) => ({
        label: column.categories[value],
        colour: values.length > palette.length ? shade(i / (values.length - 1)) : palette[i],
        has: (row) => column.values[row] === value,
      }));
    }
    const count = Math.min(values.length, MOST_GROUPS);
    return Array.from({ length: count }, (_, i) => {
      const own = values.filter((_, rank) => Math.floor((rank * count) / values.length) === i);
      const ends = [own[0], own[own.length - 1]];
      return {
        label: [...new Set(ends.map((value) => valueText(column, value)))].join(" … "),
        colour: shade(count > 1 ? i / (count - 1) : 0.3),
        has: (row) =>
          column.values[row] !== null &&
          column.values[row] >= ends[0] &&
          column.values[row] <= ends[1],
      };
    });
  }

  // ---- which configs are shown: the filter, and the ranges on the parallel axes ----------------

  let shown = new Set(rows);
  const listeners = [];
  const TERM = /^(.+?)(<=|>=|!=|=|<|>)(.*)$/;

  function filterOf(text) {
    const tests = [];
    const problems = [];
    for (const term of text.match(/(?:[^\s"]|"[^"]*")+/g) || []) {
      const [, name, sign, raw] = term.match(TERM) || [];
      if (!name) {
        const wanted = term.replaceAll('"', "").toLowerCase();
        tests.push((row) =>
          columns.some((c) => c.categories && textOf(c, row).toLowerCase().includes(wanted)),
        );
        continue;
      }
      const wanted = name.replaceAll('"', "").toLowerCase();
      const own = columns.filter((c) =>
        [c.name, c.label].some((each) => each.toLowerCase() === wanted),
      );
      const column = own[0] || columns.find((c) => c.name.toLowerCase().startsWith(wanted));
      const value = raw.replaceAll('"', "");
      if (!column) problems.push(`no column ${name}`);
      else tests.push((row) => compare(column, row, sign, value));
    }
    return { test: (row) => tests.every((test) => test(row)), problems };
  }

  function compare(column, row, sign, wanted) {
    const own = column.values[row];
    if (column.categories) {
      const equal = textOf(column, row).toLowerCase() === wanted.toLowerCase();
      return sign === "=" ? equal : sign === "!=" ? !equal : false;
    }
    const value = Number(wanted);
    if (own === null) return sign === "=" ? textOf(column, row) === wanted : sign === "!=";
    // As the table shows it, 0.3333 is a third.
    const equal = own === value || textOf(column, row) === wanted;
    return {
      "=": equal,
      "!=": !equal,
      "<": own < value,
      ">": own > value,
      "<=": own <= value,
      ">=": own >= value,
    }[sign];
  }

  function updateShown() {
    const { test, problems } = filterOf(choices.get("q") || "");
    const ranges = [...brushes()];
    const inRanges = (row) =>
      ranges.every(([column, intervals]) => {
        const value = column.values[row];
        return value !== null && intervals.some(([low, high]) => value >= low && value <= high);
      });
    shown = new Set(rows.filter((row) => test(row) && inRanges(row)));
    const all = shown.size === rows.length;
    byId("matches").textContent = problems.length
      ? problems.join(", ")
      : all
        ? counted(rows.length, "config")
        : `${grouped(shown.size)} of ${counted(rows.length, "config")}`;
    byId("clear").hidden = all;
    listeners.forEach((listener) => listener());
  }

  function brushes() {
    const found = new Map();
    let saved = {};
    try {
      saved = JSON.parse(choices.get("b") || "{}");
    } catch {
      choose("b", ""); // an address that was cut
    }
    const isInterval = (one) =>
      Array.isArray(one) && one.length === 2 && one.every((end) => Number.isFinite(end));
    for (const [name, intervals] of Object.entries(saved ?? {})) {
      const valid = Array.isArray(intervals) && intervals.length && intervals.every(isInterval);
      if (columnOf.has(name) && valid) found.set(columnOf.get(name), intervals);
    }
    return found;
  }

  // ---- controls --------------------------------------------------------------------------------

  function element(tag, content = "", properties = {}) {
    const made = document.createElement(tag);
    made.textContent = content;
    return Object.assign(made, properties);
  }

  function selection(parent, name, label, options, value, onChange) {
    const select = element("select", "", { id: `choose-${name}` });
    for (const [key, text] of options) select.append(element("option", text, { value: key }));
    select.value = value;
    select.addEventListener("change", () => {
      choose(name, select.value);
      onChange();
    });
    const labelled = element("label", label);
    labelled.append(select);
    parent.append(labelled);
    return select;
  }

  function checkbox(parent, name, label, checked, onChange) {
    const box = element("input", "", { type: "checkbox", id: `choose-${name}`, checked });
    box.addEventListener("change", () => {
      choose(name, box.checked ? "1" : "0");
      onChange();
    });
    const labelled = element("label", "", { className: "check" });
    labelled.append(box, label);
    parent.append(labelled);
    return box;
  }

  // ---- the figure ------------------------------------------------------------------------------

  const STEP = "step";
  const figure = {
    chart: null,
    items: [],
    panels: [],
    hidden: new Set(),
    colour: "",
    offset: () => 0,
  };

  function defaults() {
    const losses = ["test_loss", "train_loss"].filter((name) => curvesOf.has(name));
    const curve = losses[losses.length - 1] || [...curvesOf.keys()][0];
    const timekeys = withValues.filter((c) => c.role === "timekey");
    const scalar =
      timekeys[timekeys.length - 1] ||
      withValues.find((c) => c.name === "test_loss") ||
      withValues[0];
    // The members of a zipped axis vary together: they are one.
    const zips = varied.filter(combined);
    const inZip = (column) => zips.some((zip) => zip.members.includes(column.name));
    const free = varied.filter((c) => c.name !== "trial" && c.name !== "seed" && !inZip(c));
    const numbers = free.filter((c) => !c.categories);
    if (curve) return { x: STEP, y: curve, c: free[0]?.name, f: few(free[1]) };
    const x = numbers[0] || free[0] || varied[0] || axes[0];
    const others = free.filter((c) => c !== x);
    return { x: x?.name, y: scalar?.name, c: others[0]?.name, f: few(others[1]) };
  }
  const few = (column) =>
    column && distinct(column, finished).length <= 6 ? column.name : undefined;

  function figureChoices() {
    const initial = defaults();
    const ys = [...new Set([...curvesOf.keys(), ...withValues.map((c) => c.name)])];
    const y = chosen("y", ys, initial.y);
    const xs = [
      ...(curvesOf.has(y) ? [STEP] : []),
      ...axes.map((c) => c.name),
      ...withValues.map((c) => c.name),
    ];
    const otherwise = xs.includes(initial.x)
      ? initial.x
      : (varied.find((c) => !c.categories) || varied[0] || axes[0])?.name;
    const x = chosen("x", xs, otherwise ?? xs[0]);
    const colours = ["", ...groupings.map((c) => c.name)];
    const isStep = x === STEP && curvesOf.has(y);
    const c = chosen("c", colours, initial.c === x ? "" : (initial.c ?? ""));
    const f = chosen("f", colours, initial.f === x ? "" : (initial.f ?? ""));
    const column = columnOf.get(x);
    const positive =
      isStep || (column && !column.categories && column.values.every((v) => v === null || v > 0));
    const wide = isStep || spread(column?.values) >= WIDE;
    return {
      y,
      x,
      c: choices.get("c") === NONE ? "" : c,
      f: choices.get("f") === NONE ? "" : f,
      isStep,
      ys,
      xs,
      canLogX: Boolean(positive),
      lx: Boolean(positive) && (choices.get("lx") ?? (wide ? "1" : "0")) === "1",
      ly: (choices.get("ly") ?? (defaultLogY(y, isStep) ? "1" : "0")) === "1",
      s: isStep ? Math.max(0, Math.min(Math.round(Number(choices.get("s"))) || 0, 50)) : 0,
      m: isStep && choices.get("m") === "1",
    };
  }

  // The ratio of the largest value to the smallest from which on an axis is logarithmic by default.
  const WIDE = 8;
  const spread = (values = []) => {
    const own = values.filter((v) => v !== null && v > 0);
    return own.length ? Math.max(...extent(own)) / Math.min(...extent(own)) : 1;
  };
  function extent(values) {
    let low = Infinity;
    let high = -Infinity;
    for (const value of values) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
    return [low, high];
  }
  function defaultLogY(name, isStep) {
    if (isStep) {
      const ends = [...curvesOf.get(name).values()].map((curve) => extent(curve.y));
      const low = Math.min(...ends.map((end) => end[0]));
      return low > 0 && Math.max(...ends.map((end) => end[1])) / low > 5;
    }
    const column = columnOf.get(name);
    return (
      Boolean(column) &&
      column.values.every((v) => v === null || v > 0) &&
      spread(column.values) >= WIDE
    );
  }

  const labelOf = (name) => (name === STEP ? "step" : (columnOf.get(name)?.label ?? name));
  // Of a variable along the training, and along an axis of the figure.
  const curveLabel = (name) => labelOf(name).replace(/^final /, "");
  const titleOf = (name, isStep) =>
    columnOf.get(name)?.title ?? (isStep ? curveLabel(name) : labelOf(name));

  function figureControls() {
    const parent = byId("figure-controls");
    parent.replaceChildren();
    if (!finished.length) return;
    const now = figureChoices();
    const again = () => {
      const focused = document.activeElement.id;
      figureControls();
      byId(focused)?.focus();
      drawFigure();
    };
    const listed = (names) => names.map((name) => [name, labelOf(name)]);
    selection(
      parent,
      "y",
      "y",
      now.ys.map((name) => [name, curvesOf.has(name) ? curveLabel(name) : labelOf(name)]),
      now.y,
      again,
    );
    selection(parent, "x", "x", listed(now.xs), now.x, again);
    const groups = [[NONE, "–"], ...listed(groupings.map((c) => c.name))];
    selection(parent, "c", "colour", groups, now.c || NONE, again);
    selection(parent, "f", "panels", groups, now.f || NONE, again);
    const lx = checkbox(parent, "lx", "log x", now.lx, drawFigure);
    lx.disabled = !now.canLogX;
    checkbox(parent, "ly", "log y", now.ly, drawFigure);
    if (now.isStep) {
      const label = element("label", "smoothing");
      const slider = element("input", "", {
        type: "range",
        id: "choose-s",
        min: 0,
        max: 50,
        step: 1,
        value: now.s,
      });
      slider.addEventListener("input", () => {
        choose("s", slider.value === "0" ? "" : slider.value);
        drawFigure();
      });
      label.append(slider);
      parent.append(label);
      if (varied.some((c) => c.name === "trial"))
        checkbox(parent, "m", "mean over trials", now.m, drawFigure);
    }
  }

  // The mean of each point and of up to `half` drawn neighbours on either side; on a logarithmic
  // axis the geometric mean.
  function smoothed(values, half, log) {
    if (!half) return values;
    const sums = new Float64Array(values.length + 1);
    values.forEach((value, i) => {
      sums[i + 1] = sums[i] + (log ? Math.log(value) : value);
    });
    return Float64Array.from(values, (_, i) => {
      const reach = Math.min(half, i, values.length - 1 - i);
      const mean = (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1);
      return log ? Math.exp(mean) : mean;
    });
  }

  function interpolated(curve, x) {
    let low = 0;
    let high = curve.x.length - 1;
    if (x <= curve.x[0]) return curve.y[0];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (curve.x[middle] <= x) low = middle;
      else high = middle;
    }
    if (curve.x[high] === curve.x[low]) return curve.y[low];
    const share = (x - curve.x[low]) / (curve.x[high] - curve.x[low]);
    return curve.y[low] + share * (curve.y[high] - curve.y[low]);
  }

  // Curves to draw: of configs, or of means over the trials of configs that are else the same. A
  // config that diverged is in no mean: it would be all of it.
  function curveItems(now) {
    const curves = curvesOf.get(now.y);
    const own = [...curves].filter(([row]) => shown.has(row));
    const single = ([row, curve]) => ({ row, rows: [row], ...curve });
    if (!now.m) return own.map(single);
    const others = varied.filter((c) => c.name !== "trial");
    const groups = new Map();
    for (const [row, curve] of own.filter(([row]) => !hasDiverged(row))) {
      const key = JSON.stringify(others.map((c) => c.values[row]));
      if (!groups.has(key)) groups.set(key, []);
      groups.get(key).push([row, curve]);
    }
    const means = [...groups.values()].map((members) => {
      const end = Math.min(...members.map(([, curve]) => curve.x[curve.x.length - 1]));
      const grid = Array.from(members[0][1].x).filter((x) => x < end);
      grid.push(end);
      const values = Array.from(grid, (x) => members.map(([, curve]) => interpolated(curve, x)));
      return {
        row: members[0][0],
        rows: members.map(([row]) => row),
        x: Float64Array.from(grid),
        y: Float64Array.from(values, (each) => each.reduce((a, b) => a + b, 0) / each.length),
        low: values.map((each) => Math.min(...each)),
        high: values.map((each) => Math.max(...each)),
      };
    });
    return [...means, ...own.filter(([row]) => hasDiverged(row)).map(single)];
  }

  function steppedItems(now) {
    const shift = now.lx ? 1 : 0;
    return curveItems(now)
      .map((item) => {
        const keep = Array.from(item.y, (value) => !now.ly || value > 0);
        const at = Array.from(item.x)
          .filter((_, i) => keep[i])
          .map((x) => x + shift);
        const values = smoothed(Float64Array.from(item.y.filter((_, i) => keep[i])), now.s, now.ly);
        const points = at.map((x, i) => [x, values[i]]);
        const band =
          item.low && item.rows.length > 1
            ? [
                ...at.map((x, i) => [x, item.high[i]]),
                ...at.map((x, i) => [x, item.low[i]]).reverse(),
              ].filter(([, value]) => !now.ly || value > 0)
            : null;
        return { ...item, points, band, dropped: keep.filter((own) => !own).length };
      })
      .filter((item) => item.points.length);
  }

  function scatteredItems(now) {
    const x = columnOf.get(now.x);
    const y = columnOf.get(now.y);
    if (!y) return [];
    return finished
      .filter((row) => shown.has(row) && y.values[row] !== null && (!x || x.values[row] !== null))
      .map((row) => ({ row, rows: [row], points: [[x ? x.values[row] : 0, y.values[row]]] }))
      .filter(({ points: [[, value]] }) => !now.ly || value > 0);
  }

  const MOST_PANELS = 12;
  function panelsOf(now) {
    const column = columnOf.get(now.f);
    if (!column) return [{ title: "", has: () => true }];
    const values = distinct(column, finished);
    const count = Math.min(values.length, MOST_PANELS);
    const picked = [
      ...new Set(
        Array.from(
          { length: count },
          (_, i) => values[Math.round((i * (values.length - 1)) / Math.max(count - 1, 1))],
        ),
      ),
    ];
    return picked.map((value) => ({
      title: `${column.label} = ${valueText(column, value)}`,
      has: (row) => column.values[row] === value,
    }));
  }

  // Beyond these, ECharts and the arithmetic of ticks overflow.
  const MOST = 1e100;
  const within = (low, high) => [Math.max(low, -MOST), Math.min(high, MOST)];

  function nice(lowest, highest) {
    const [low, high] = within(lowest, highest);
    const size = Math.max(Math.abs(low), Math.abs(high));
    // Of values that are equal up to rounding, ticks would have as many digits as numbers have.
    if (high - low <= 1e-9 * size || size < 1 / MOST) return [low - (size / 2 || 0.5), high + (size / 2 || 0.5)];
    const pad = (high - low) * 0.03;
    return [low >= 0 && low - pad < 0 ? 0 : low - pad, high + pad];
  }
  function niceLog(lowest, highest) {
    const low = Math.max(lowest, 1 / MOST);
    const high = Math.max(Math.min(highest, MOST), low);
    const factor = Math.max((high / low) ** 0.03, 1.02);
    return high <= (1 + 1e-9) * low ? [low / 2, high * 2] : [low / factor, high * factor];
  }

  function linearTicks(low, high, count) {
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high * (1 + 1e-12); i++)
      found.push(Number((i * step).toPrecision(12)));
    return found;
  }
  function logTicks(low, high, count) {
    const powers = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      powers.push(power);
    const ticksAt = (digits) =>
      powers
        .flatMap((power) => digits.map((digit) => Number((digit * 10 ** power).toPrecision(12))))
        .filter((value) => value >= low && value <= high);
    // The most ticks that there is room for.
    for (const digits of [[1, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1]]) {
      const found = ticksAt(digits);
      if (found.length <= count + 1 && found.length >= 2) return found;
    }
    const found = ticksAt([1]);
    if (found.length < 2) return linearTicks(low, high, count).filter((value) => value > 0);
    const every = Math.ceil(found.length / count);
    return found.filter((_, i) => i % every === 0);
  }

  // The values of an axis themselves where they are few and apart from each other.
  function ticksOf(values, log, range, count) {
    const own = [...new Set(values)].sort((a, b) => a - b);
    const { place } = scale(log, null, range, count);
    const apart = own.every((value, i) => i === 0 || place(value) - place(own[i - 1]) >= 0.6);
    return own.length <= 8 && apart ? own : (log ? logTicks : linearTicks)(...range, count);
  }

  function scale(log, categories, [low, high], size) {
    if (categories) {
      return { type: "category", place: (value) => ((value + 0.5) / categories.length) * size };
    }
    const at = log ? Math.log : (value) => value;
    return {
      type: log ? "log" : "value",
      place: (value) => ((at(value) - at(low)) / (at(high) - at(low))) * size,
    };
  }

  function axisOption(log, column, range, label, look, outer, ticks) {
    const categories = column?.categories;
    const common = {
      name: outer ? label : "",
      nameLocation: "middle",
      nameTextStyle: { color: look.text, fontSize: 12 },
      axisLine: { show: true, onZero: false, lineStyle: { color: look.muted, width: 1 } },
      splitLine: { show: !categories, lineStyle: { color: look.line, width: 1 } },
      minorTick: { show: false },
    };
    if (categories) {
      return {
        ...common,
        type: "category",
        data: categories,
        axisTick: { show: false },
        axisLabel: { color: look.muted, hideOverlap: true, width: 90, overflow: "truncate" },
      };
    }
    return {
      ...common,
      type: log ? "log" : "value",
      min: range[0],
      max: range[1],
      axisTick: { show: true, customValues: ticks, lineStyle: { color: look.muted } },
      splitLine: { ...common.splitLine, customValues: ticks },
      axisLabel: {
        color: look.muted,
        customValues: ticks,
        formatter: tickFormatter(ticks, log),
        hideOverlap: true,
      },
    };
  }

  function drawFigure() {
    hideHover();
    const now = figureChoices();
    const look = style();
    if (figure.colour !== now.c) figure.hidden.clear();
    figure.colour = now.c;
    const groups = groupsOf(columnOf.get(now.c));
    const panels = panelsOf(now);
    const items = now.isStep ? steppedItems(now) : scatteredItems(now);
    for (const item of items) {
      item.group = groups.findIndex((group) => group.has(item.row));
      item.panel = panels.findIndex((panel) => panel.has(item.row));
    }
    figure.items = items.filter(
      (item) => item.group >= 0 && item.panel >= 0 && !figure.hidden.has(groups[item.group].label),
    );
    const drawn = new Set(items.map((item) => item.row));
    figure.lacking = finished.filter((row) => shown.has(row) && !drawn.has(row));
    legend(groups, now);
    noteFigure(now, items, panels);
    const box = byId("figure-chart");
    box.hidden = !items.length;
    if (!items.length) return;
    layOutPanels(box, panels, now, look, groups);
  }

  function layOutPanels(box, panels, now, look, groups) {
    const width = box.clientWidth;
    const across =
      panels.length === 1
        ? 1
        : Math.max(
            1,
            Math.min(panels.length === 4 ? 2 : 3, panels.length, Math.floor(width / 230)),
          );
    const down = Math.ceil(panels.length / across);
    const height =
      panels.length === 1
        ? Math.min(440, Math.max(280, width * 0.5))
        : down === 1
          ? 320
          : 250 * down + 30;
    box.style.height = `${height}px`;
    figure.chart ??= echarts.init(box, null, { renderer: "canvas" });
    figure.chart.resize();
    const left = 64;
    const gap = 22;
    const panelWidth = (width - left - 16 - gap * (across - 1)) / across;
    const top = panels.length > 1 ? 26 : 10;
    const panelHeight = (height - 46 - down * top - (down - 1) * 24) / down;
    const visible = figure.items;
    const xColumn = now.isStep ? null : columnOf.get(now.x);
    const xs = visible.flatMap((item) =>
      item.points.length > 1
        ? [item.points[0][0], item.points[item.points.length - 1][0]]
        : [item.points[0][0]],
    );
    // What diverges leaves the panel: its last values would make all others a line at the bottom.
    const tame = visible.filter((item) => !hasDiverged(item.row));
    const ys = visible.map((item) => item.points[0][1]);
    for (const item of tame.length ? tame : visible) ys.push(...extentOf(item));
    const xRange = (now.lx ? niceLog : nice)(...(xs.length ? extent(xs) : [1, 10]));
    const yRange = (now.ly ? niceLog : nice)(...(ys.length ? extent(ys) : [1, 10]));
    const room = Math.max(2, panelWidth / 75);
    const xTicks = xColumn?.categories
      ? []
      : xColumn?.role === "axis"
        ? ticksOf(xs, now.lx, xRange, room)
        : (now.lx ? logTicks : linearTicks)(...xRange, room);
    const yTicks = (now.ly ? logTicks : linearTicks)(...yRange, Math.max(2, panelHeight / 42));
    const option = {
      animation: false,
      textStyle: { fontFamily: getComputedStyle(document.body).fontFamily },
      grid: [],
      xAxis: [],
      yAxis: [],
      title: [],
      series: [],
    };
    figure.panels = panels.map((panel, index) => {
      const column = index % across;
      const row = Math.floor(index / across);
      const rect = {
        x: left + column * (panelWidth + gap),
        y: top + row * (panelHeight + top + 24),
        width: panelWidth,
        height: panelHeight,
      };
      option.grid.push({
        left: rect.x,
        top: rect.y,
        width: rect.width,
        height: rect.height,
        containLabel: false,
        outerBoundsMode: "none",
      });
      if (panel.title)
        option.title.push({
          text: panel.title,
          left: rect.x,
          top: rect.y - 22,
          textStyle: {
            fontSize: 12,
            fontWeight: 500,
            color: look.text,
            width: rect.width,
            overflow: "truncate",
          },
        });
      const lowest = index + across >= panels.length;
      const xLabel = now.isStep && now.lx ? "step + 1" : titleOf(now.x);
      const yLabel = titleOf(now.y, now.isStep);
      const x = axisOption(now.lx, xColumn, xRange, xLabel, look, lowest, xTicks);
      const y = axisOption(now.ly, null, yRange, yLabel, look, column === 0, yTicks);
      option.xAxis.push({
        ...x,
        gridIndex: index,
        nameGap: 26,
        axisLabel: { ...x.axisLabel, show: lowest },
      });
      option.yAxis.push({
        ...y,
        gridIndex: index,
        nameGap: 46,
        axisLabel: { ...y.axisLabel, show: column === 0 },
      });
      return {
        rect,
        x: scale(now.lx, xColumn?.categories, xRange, rect.width),
        y: scale(now.ly, null, yRange, rect.height),
      };
    });
    const dense = visible.length > 60;
    // Colours side by side at the texts of an axis.
    const each = panelWidth / (xColumn?.categories?.length || 1) / (groups.length + 1);
    const apart = xColumn?.categories ? Math.min(24, each) : 0;
    figure.offset = (group) => (group - (groups.length - 1) / 2) * apart;
    groups.forEach((group, g) =>
      panels.forEach((panel, p) => {
        const own = visible.filter((item) => item.group === g && item.panel === p);
        if (!own.length) return;
        const common = {
          name: group.label || "configs",
          symbolOffset: [figure.offset(g), 0],
          xAxisIndex: p,
          yAxisIndex: p,
          silent: true,
          animation: false,
        };
        option.series.push(
          ...(now.isStep
            ? lineSeries(own, common, group, dense)
            : pointSeries(own, common, group, dense, now, lackingAt(now, group, panel))),
        );
      }),
    );
    figure.chart.setOption(option, { notMerge: true });
  }

  const extentOf = (item) => {
    const own = [...item.points, ...(item.band || [])].map((point) => point[1]);
    return extent(own);
  };

  function lineSeries(items, common, group, dense) {
    const bands = items.filter((item) => item.band);
    const found = [
      {
        ...common,
        type: "lines",
        coordinateSystem: "cartesian2d",
        polyline: true,
        clip: true,
        lineStyle: {
          color: group.colour,
          width: dense ? 1 : 1.6,
          opacity: Math.min(0.95, Math.max(0.12, 10 / Math.sqrt(figure.items.length))),
        },
        data: items
          .filter((item) => item.points.length > 1)
          .map((item) => ({ coords: item.points, row: item.row })),
      },
    ];
    const single = items.filter((item) => item.points.length === 1);
    if (single.length)
      found.push({
        ...common,
        type: "scatter",
        symbolSize: 6,
        itemStyle: { color: group.colour },
        data: single.map((item) => item.points[0]),
      });
    if (bands.length) {
      found.unshift({
        ...common,
        type: "custom",
        clip: true,
        data: bands.map((_, i) => [i]),
        renderItem: (params, api) => ({
          type: "polygon",
          shape: { points: bands[params.dataIndex].band.map((point) => api.coord(point)) },
          style: { fill: group.colour, opacity: 0.16 },
        }),
      });
    }
    return found;
  }

  // Where on the axis configs of a group and a panel have no value to draw.
  function lackingAt(now, group, panel) {
    const x = columnOf.get(now.x);
    const own = figure.lacking.filter((row) => group.has(row) && panel.has(row));
    return new Set(own.map((row) => (x ? x.values[row] : 0)));
  }

  function pointSeries(items, common, group, dense, now, lacking) {
    const x = columnOf.get(now.x);
    const found = [
      {
        ...common,
        type: "scatter",
        symbolSize: dense ? 5 : 7,
        clip: true,
        itemStyle: { color: group.colour, opacity: x?.role === "axis" ? 0.45 : 0.8 },
        data: items.map((item) => item.points[0]),
      },
    ];
    if (x?.role === "axis") {
      const means = new Map();
      for (const { points } of items) {
        const [at, value] = points[0];
        means.set(at, [...(means.get(at) || []), value]);
      }
      const data = [...means]
        .sort((a, b) => a[0] - b[0])
        .map(([at, own]) => ({
          value: [at, own.reduce((a, b) => a + b, 0) / own.length],
          // Hollow where the mean is not one of all configs.
          ...(lacking.has(at) && { symbol: x.categories ? "emptyRect" : "emptyCircle", symbolSize: 8 }),
        }));
      const marker = { ...common, data, clip: true, itemStyle: { color: group.colour } };
      if (x.categories) {
        // Between texts there is nothing for a line to run through.
        found.push({ ...marker, type: "scatter", symbol: "rect", symbolSize: [16, 3] });
      } else if (data.length > 1) {
        const lineStyle = { color: group.colour, width: 1.8 };
        const symbol = { showSymbol: true, symbol: "circle", symbolSize: 6 };
        found.push({ ...marker, ...symbol, type: "line", lineStyle });
      }
    }
    return found;
  }

  function legend(groups, now) {
    const parent = byId("figure-legend");
    parent.replaceChildren();
    if (!now.c || !finished.length) return;
    parent.append(element("span", labelOf(now.c), { className: "legend-title" }));
    for (const group of groups.slice(0, MOST_LABELS)) {
      const button = element("button", "", { type: "button" });
      button.title = group.label; // which may be cut
      const swatch = element("i");
      swatch.style.background = group.colour;
      button.append(swatch, group.label);
      button.setAttribute("aria-pressed", String(!figure.hidden.has(group.label)));
      button.addEventListener("click", () => {
        if (!figure.hidden.delete(group.label)) figure.hidden.add(group.label);
        drawFigure();
        parent.querySelectorAll("button")[groups.indexOf(group)].focus();
      });
      parent.append(button);
    }
    if (groups.length > MOST_LABELS)
      parent.append(element("span", `… and ${groups.length - MOST_LABELS} more`));
  }

  const MOST_LABELS = 24;
  const grouped = (n) => n.toLocaleString("en");
  const counted = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;

  // The axes along which configs differ that have a mean together.
  function mergedBy(items) {
    const places = new Map();
    for (const {
      row,
      group,
      panel,
      points: [[at]],
    } of items) {
      const key = `${group} ${panel} ${at}`;
      places.set(key, [...(places.get(key) || []), row]);
    }
    const differ = (c) =>
      [...places.values()].some((own) => own.some((row) => c.values[row] !== c.values[own[0]]));
    return varied.filter((c) => !combined(c) && differ(c)).map((c) => c.label);
  }

  function noteFigure(now, items, panels) {
    const parts = [];
    if (!finished.length) parts.push("No config has a result yet.");
    else if (!items.length)
      parts.push(
        "Nothing to draw: none of the configs shown has these values" +
          (now.ly ? ", or they are ≤ 0, which cannot be on a logarithmic axis." : "."),
      );
    else if (now.isStep) {
      parts.push(
        now.m
          ? `${counted(items.length, "curve")}: the mean over the trials, as long as all of them ` +
              "train, without those that diverged; the bands go from the smallest to the largest."
          : `${counted(items.length, "config")}, a curve each, until it stopped.`,
      );
      if (now.s)
        parts.push(
          `Smoothed: the ${now.ly ? "geometric " : ""}mean of each drawn point and up to ` +
            `${now.s} on either side.`,
        );
      const diverged = items.filter((item) => hasDiverged(item.row)).length;
      if (diverged)
        parts.push(
          `${counted(diverged, "config")} diverged: ` +
            `${diverged === 1 ? "its curve" : "their curves"} may leave the panel.`,
        );
      const dropped = items.reduce((sum, item) => sum + item.dropped, 0);
      if (dropped) parts.push(`${counted(dropped, "point")} ≤ 0 cannot be on a logarithmic axis.`);
    } else {
      const x = columnOf.get(now.x);
      const merged = mergedBy(items);
      const line =
        x?.role === "axis" && merged.length
          ? `; the ${x.categories ? "bars" : "lines"} are means over ${merged.join(", ")}`
          : "";
      parts.push(`${counted(items.length, "config")}, a point each${line}.`);
      const own = finished.filter((row) => shown.has(row));
      const values = own.map((row) => columnOf.get(now.y)?.values[row] ?? 1);
      const small = now.ly ? values.filter((value) => value <= 0).length : 0;
      const without = own.length - small - items.length;
      const never =
        columnOf.get(now.y)?.role === "timekey"
          ? " (never crossed, or without this threshold)"
          : "";
      const hollow = line ? "; means that lack them are hollow" : "";
      if (without)
        parts.push(`${counted(without, "config")} without a value${never}, in no mean${hollow}.`);
      if (small)
        parts.push(`${counted(small, "value")} ≤ 0 cannot be on a logarithmic axis, nor in a mean.`);
    }
    const column = columnOf.get(now.f);
    const all = column ? distinct(column, finished).length : 1;
    if (all > panels.length) parts.push(`${panels.length} of ${all} panels.`);
    byId("figure-note").textContent = parts.join(" ");
    const what = `${titleOf(now.y, now.isStep)} against ${titleOf(now.x)}`;
    byId("figure-chart").setAttribute(
      "aria-label",
      `${what}. ${parts.join(" ")} The table of configs has the values.`,
    );
  }

  // ---- hovering --------------------------------------------------------------------------------

  const REACH = 28;
  let marked = null;

  function placeOf(item, point) {
    const { rect, x, y } = figure.panels[item.panel];
    const across = x.place(point[0]) + figure.offset(item.group);
    return [rect.x + across, rect.y + rect.height - y.place(point[1])];
  }

  function nearest(px, py) {
    const panel = figure.panels.findIndex(
      ({ rect }) =>
        px >= rect.x - 8 &&
        px <= rect.x + rect.width + 8 &&
        py >= rect.y - 8 &&
        py <= rect.y + rect.height + 8,
    );
    if (panel < 0) return null;
    let best = { distance: REACH ** 2, item: null, point: null };
    for (const item of figure.items) {
      if (item.panel !== panel) continue;
      item.places ??= item.points.map((point) => placeOf(item, point));
      const places = item.places;
      let low = 0;
      let high = places.length - 1;
      while (high - low > 1) {
        const middle = (low + high) >> 1;
        if (places[middle][0] <= px) low = middle;
        else high = middle;
      }
      for (let i = Math.max(low - 2, 0); i <= Math.min(high + 2, places.length - 1); i++) {
        const next = places[Math.min(i + 1, places.length - 1)];
        const [distance, share] = toSegment(px, py, places[i], next);
        if (distance < best.distance)
          best = {
            distance,
            item,
            point: item.points[share > 0.5 ? Math.min(i + 1, places.length - 1) : i],
          };
      }
    }
    return best.item && best;
  }

  function toSegment(px, py, [ax, ay], [bx, by]) {
    const length = (bx - ax) ** 2 + (by - ay) ** 2;
    const share = length
      ? Math.max(0, Math.min(1, ((px - ax) * (bx - ax) + (py - ay) * (by - ay)) / length))
      : 0;
    return [(px - ax - share * (bx - ax)) ** 2 + (py - ay - share * (by - ay)) ** 2, share];
  }

  function mark(item) {
    unmark();
    const zr = figure.chart.getZr();
    const look = style();
    item.places ??= item.points.map((point) => placeOf(item, point));
    const one = item.places.length === 1;
    marked = one
      ? new echarts.graphic.Circle({
          shape: { cx: item.places[0][0], cy: item.places[0][1], r: 7 },
          style: { fill: "none", stroke: look.text, lineWidth: 2 },
          silent: true,
          zlevel: 5,
        })
      : new echarts.graphic.Polyline({
          shape: { points: item.places },
          style: { stroke: look.text, lineWidth: 2.6 },
          silent: true,
          zlevel: 5,
        });
    zr.add(marked);
  }
  function unmark() {
    if (marked) figure.chart.getZr().remove(marked);
    marked = null;
  }

  function showHover(event, item, point) {
    const now = figureChoices();
    const box = byId("hover");
    const title =
      item.rows.length > 1 ? `mean of ${item.rows.length} trials` : `config ${item.row}`;
    const names = named(item.row).filter(
      (text) => item.rows.length === 1 || !text.startsWith("trial = "),
    );
    const x = columnOf.get(now.x);
    const at = now.isStep
      ? `step ${(point[0] - (now.lx ? 1 : 0)).toLocaleString("en")}`
      : `${labelOf(now.x)} = ${x ? textOf(x, item.row) : ""}`;
    const yLabel = now.isStep ? curveLabel(now.y) : labelOf(now.y);
    const lines = [...names, at, `${yLabel} = ${format(point[1])}`];
    if (item.rows.length === 1 && textOf(status, item.row) !== "done")
      lines.push(textOf(status, item.row));
    box.replaceChildren(
      element("b", title),
      ...[...new Set(lines)].map((line) => element("span", line)),
    );
    box.hidden = false;
    const left = Math.min(event.clientX + 14, innerWidth - box.offsetWidth - 8);
    const above = event.clientY - box.offsetHeight - 12;
    box.style.left = `${Math.max(left, 8)}px`;
    box.style.top = `${above > 8 ? above : event.clientY + 18}px`;
  }

  function hideHover() {
    byId("hover").hidden = true;
    if (figure.chart) unmark();
  }

  function followPointer(event) {
    if (!figure.chart) return;
    const bounds = byId("figure-chart").getBoundingClientRect();
    const found = nearest(event.clientX - bounds.left, event.clientY - bounds.top);
    if (!found) return hideHover();
    mark(found.item);
    showHover(event, found.item, found.point);
  }

  // ---- parallel axes ---------------------------------------------------------------------------

  const parallel = { chart: null, columns: [] };

  function parallelColumns() {
    const own = varied.filter((c) => !combined(c));
    const results = withValues.filter(
      (c) => distinct(c, finished).length > 1 && !["seconds", "trained_together"].includes(c.name),
    );
    const losses = results.filter((c) => ["test_loss", "train_loss"].includes(c.name));
    const timekeys = results.filter((c) => c.role === "timekey").slice(-2);
    const others = results.filter(
      (c) => !losses.includes(c) && !timekeys.includes(c) && c.role !== "timekey",
    );
    return [...own, ...[...losses, ...timekeys, ...others].slice(0, Math.max(2, 9 - own.length))];
  }

  const logged = (column) =>
    !column.categories &&
    column.values.every((v) => v === null || v > 0) &&
    spread(column.values) >= WIDE;

  function parallelColour() {
    const valid = parallel.columns.filter((c) => !c.categories).map((c) => c.name);
    const isResult = (c) => c.role !== "axis" && !c.categories;
    const timekeys = parallel.columns.filter((c) => c.role === "timekey" && spread(c.values) > 2);
    const results = [...timekeys.slice(-1), ...parallel.columns.filter(isResult)];
    return columnOf.get(chosen("p", valid, (results[0] || columnOf.get(valid[0]))?.name));
  }

  function parallelControls() {
    const parent = byId("parallel-controls");
    parent.replaceChildren();
    const numbers = parallel.columns.filter((c) => !c.categories);
    const colour = parallelColour();
    if (colour)
      selection(
        parent,
        "p",
        "colour",
        numbers.map((c) => [c.name, c.label]),
        colour.name,
        drawParallel,
      );
  }

  function drawParallel() {
    const box = byId("parallel-chart");
    const look = style();
    const colour = parallelColour();
    const values = colour
      ? finished.map((row) => colour.values[row]).filter((v) => v !== null)
      : [];
    const [low, high] = values.length ? extent(values) : [0, 1];
    const at = colour && logged(colour) ? Math.log : (v) => v;
    const every = Math.max(1, Math.ceil(finished.length / data.mostLines));
    const drawn = finished.filter((_, i) => i % every === 0);
    const dense = drawn.length > 150;
    box.style.height = "330px";
    box.style.minWidth = `${90 + 72 * (parallel.columns.length - 1)}px`; // else it scrolls
    parallel.chart ??= bindParallel(echarts.init(box, null, { renderer: "canvas" }));
    parallel.chart.resize();
    const rotated = parallel.columns.some(
      (c) => c.label.length * 7 > (box.clientWidth - 90) / parallel.columns.length,
    );
    parallel.chart.setOption(
      {
        animation: false,
        textStyle: { fontFamily: getComputedStyle(document.body).fontFamily },
        parallel: {
          left: 50,
          right: 60,
          top: 40,
          bottom: 24,
          parallelAxisDefault: {
            areaSelectStyle: {
              width: 16,
              borderWidth: 1,
              borderColor: look.accent,
              color: look.accent,
              opacity: 0.25,
            },
          },
        },
        parallelAxis: parallel.columns.map((column, dim) => {
          const own = finished.map((row) => column.values[row]).filter((v) => v !== null);
          const log = logged(column);
          const range = (log ? niceLog : nice)(...(own.length ? extent(own) : [1, 10]));
          const ticks = ticksOf(own, log, range, 7);
          const label = { color: look.text, textBorderColor: look.back, textBorderWidth: 3 };
          return {
            dim,
            id: `axis-${dim}`,
            name: column.label,
            nameTextStyle: {
              color: look.text,
              fontSize: 12,
              width: Math.max(60, (box.clientWidth - 90) / parallel.columns.length - 6),
              overflow: rotated ? "truncate" : "none",
            },
            nameGap: 14,
            z: 10,
            axisLine: { lineStyle: { color: look.muted } },
            ...(column.categories
              ? {
                  type: "category",
                  data: column.categories,
                  axisLabel: {
                    ...label,
                    width: 90,
                    overflow: "truncate",
                    interval: Math.max(0, Math.ceil(column.categories.length / 16) - 1),
                  },
                }
              : {
                  type: log ? "log" : "value",
                  min: range[0],
                  max: range[1],
                  axisTick: { lineStyle: { color: look.muted }, customValues: ticks },
                  axisLabel: {
                    ...label,
                    customValues: ticks,
                    formatter: tickFormatter(ticks, log),
                  },
                }),
          };
        }),
        series: [
          {
            type: "parallel",
            silent: true,
            animation: false,
            progressive: 500,
            inactiveOpacity: 0.03,
            activeOpacity: dense ? 0.5 : 0.8,
            data: drawn.map((row) => ({
              value: parallel.columns.map((c) => (c.values[row] === null ? "-" : c.values[row])),
              lineStyle: {
                color:
                  colour && colour.values[row] !== null
                    ? shade(
                        high > low
                          ? (at(colour.values[row]) - at(low)) / (at(high) - at(low))
                          : 0.3,
                      )
                    : look.muted,
                width: dense ? 1 : 1.4,
                opacity: dense ? 0.5 : 0.8,
              },
            })),
          },
        ],
      },
      { notMerge: true },
    );
    const saved = brushes();
    parallel.columns.forEach((column, dim) => {
      if (saved.has(column))
        parallel.chart.dispatchAction({
          type: "axisAreaSelect",
          parallelAxisId: `axis-${dim}`,
          intervals: saved.get(column),
        });
    });
    const most =
      every > 1 ? ` ${grouped(drawn.length)} of ${grouped(finished.length)} are drawn.` : "";
    byId("parallel-note").textContent =
      "A line per config with a result" +
      (colour
        ? `, coloured by ${colour.label} from dark (small) to bright (large), grey without a value`
        : "") +
      ". Drag along an axis to keep a range, in the figure and in the table, too; click the axis " +
      `to undo.${most}`;
  }

  function bindParallel(chart) {
    chart.on("axisareaselected", () => {
      const kept = {};
      const found = chart.getModel().queryComponents({ mainType: "parallelAxis" });
      found.forEach((axis, dim) => {
        if (axis.activeIntervals?.length)
          kept[parallel.columns[dim].name] = axis.activeIntervals.map((one) =>
            one.map((v) => Number(v.toPrecision(6))),
          );
      });
      const text = Object.keys(kept).length ? JSON.stringify(kept) : "";
      if (text !== (choices.get("b") || "")) {
        choose("b", text);
        updateShown();
      }
    });
    return chart;
  }

  // ---- the table of configs --------------------------------------------------------------------

  const PAGE_ROWS = 100;
  const view = { page: 0 };

  function sorting() {
    const [name, direction] = (choices.get("sort") || `${CONFIG}:up`).split(/:(?=up$|down$)/);
    return {
      name: columnOf.has(name) ? name : CONFIG,
      down: direction === "down",
    };
  }

  function sortedRows() {
    const { name, down } = sorting();
    const column = columnOf.get(name);
    const own = [...shown];
    if (!column) return down ? own.reverse() : own;
    const sign = down ? -1 : 1;
    return own.sort((a, b) => {
      const [left, right] = [column.values[a], column.values[b]];
      // What is missing comes last, in either direction.
      if (left === null || right === null) return (left === null) - (right === null) || a - b;
      return sign * (left - right) || a - b;
    });
  }

  const LONGEST_CELL = 60;
  function drawTable() {
    const table = byId("configs-table");
    const every = sortedRows();
    const pages = Math.max(1, Math.ceil(every.length / PAGE_ROWS));
    view.page = Math.min(view.page, pages - 1);
    const own = every.slice(view.page * PAGE_ROWS, (view.page + 1) * PAGE_ROWS);
    const head = element("tr");
    const { name: sortedBy, down } = sorting();
    for (const column of [null, ...columns]) {
      const name = column?.name ?? CONFIG;
      const cell = element("th", "", {
        scope: "col",
        className: column?.categories ? "" : "number",
      });
      if (column?.description) cell.title = column.description;
      const button = element("button", column?.label ?? "config", { type: "button" });
      button.dataset.column = name;
      if (name === sortedBy) cell.setAttribute("aria-sort", down ? "descending" : "ascending");
      button.addEventListener("click", () => {
        choose("sort", `${name}:${name === sortedBy && !down ? "down" : "up"}`);
        drawTable();
        [...table.querySelectorAll("th button")]
          .find((one) => one.dataset.column === name)
          ?.focus();
      });
      cell.append(button);
      head.append(cell);
    }
    const body = own.map((row) => {
      const line = element("tr", "", { tabIndex: -1 });
      line.dataset.row = row;
      line.append(element("td", String(row), { className: "number" }));
      for (const column of columns) {
        const text = textOf(column, row);
        const cell = element(
          "td",
          text.length > LONGEST_CELL ? `${text.slice(0, LONGEST_CELL - 1)}…` : text,
          { className: column.categories ? "" : "number" },
        );
        if (text.length > LONGEST_CELL) cell.title = text;
        if (column.role === "status") cell.classList.add(text);
        line.append(cell);
      }
      return line;
    });
    table.tHead.replaceChildren(head);
    table.tBodies[0].replaceChildren(...body);
    drawPages(pages, every.length);
  }

  function drawPages(pages, count) {
    const nav = byId("pages");
    nav.replaceChildren();
    if (pages === 1) return;
    const move = (by) => () => {
      view.page = Math.max(0, Math.min(pages - 1, view.page + by));
      drawTable();
    };
    const first = view.page * PAGE_ROWS;
    const back = element("button", "← previous", { type: "button", disabled: view.page === 0 });
    const next = element("button", "next →", { type: "button", disabled: view.page === pages - 1 });
    back.addEventListener("click", move(-1));
    next.addEventListener("click", move(1));
    const last = Math.min(first + PAGE_ROWS, count);
    const range = `${grouped(first + 1)} to ${grouped(last)} of ${grouped(count)}`;
    nav.append(back, element("span", range), next);
  }

  function markRow(event) {
    const line = event.target.closest?.("tr[data-row]");
    const item = line && figure.items.find((one) => one.rows.includes(Number(line.dataset.row)));
    if (item) mark(item);
    else if (figure.chart) unmark();
  }

  // ---- reloading, while the run goes on --------------------------------------------------------

  function reloadNowAndThen(seconds) {
    const parent = element("p", "", { className: "reload" });
    document.querySelector("header").append(parent);
    const age = Date.now() / 1000 - Number(document.body.dataset.written);
    if (age > Math.max(300, 10 * seconds)) {
      // What wrote it was killed; or the clocks differ.
      parent.textContent = "This page has not been written again for a while, and does not reload.";
      return;
    }
    const box = checkbox(
      parent,
      "r",
      `reload every ${seconds} s while the run goes on`,
      choices.get("r") !== "0",
      () => {},
    );
    let active = 0;
    for (const kind of ["pointermove", "keydown", "wheel", "pointerdown"])
      addEventListener(kind, () => (active = Date.now()), { passive: true });
    let due = Date.now() + 1000 * seconds;
    setInterval(() => {
      // Not while somebody is pointing at something, or types.
      if (!box.checked || Date.now() < due || Date.now() - active < 3000 || document.hidden) return;
      due = Infinity;
      location.reload();
    }, 500);
  }

  // ---- all together ----------------------------------------------------------------------------

  function start() {
    parallel.columns = parallelColumns();
    const hasParallel = parallel.columns.length > 1 && finished.length > 1;
    byId("parallel").hidden = !hasParallel;
    figureControls();
    if (hasParallel) parallelControls();
    const filter = byId("filter");
    filter.value = choices.get("q") || "";
    filter.addEventListener("input", () => {
      choose("q", filter.value);
      view.page = 0;
      updateShown();
    });
    byId("clear").addEventListener("click", () => {
      filter.value = "";
      choose("q", "");
      choose("b", "");
      if (hasParallel) drawParallel();
      updateShown();
    });
    listeners.push(drawFigure, drawTable);
    updateShown();
    if (hasParallel) drawParallel();
    byId("figure-chart").addEventListener("pointermove", followPointer);
    byId("figure-chart").addEventListener("pointerdown", followPointer);
    byId("figure-chart").addEventListener("pointerleave", hideHover);
    byId("configs-table").addEventListener("pointerover", markRow);
    byId("configs-table").addEventListener("pointerleave", () => figure.chart && unmark());
    const again = () => {
      drawFigure();
      if (hasParallel) drawParallel();
    };
    let width = document.body.clientWidth;
    addEventListener("resize", () => {
      if (document.body.clientWidth === width) return;
      width = document.body.clientWidth;
      again();
    });
    darkMode.addEventListener("change", again);
    const print = (on) => () => {
      printing = on;
      again();
    };
    addEventListener("beforeprint", print(true));
    addEventListener("afterprint", print(false));
    const { reload } = document.body.dataset;
    if (reload) reloadNowAndThen(Number(reload));
  }

  try {
    start();
  } catch (error) {
    document.documentElement.classList.remove("scripts"); // what needs none is there
    throw error;
  }
})();
