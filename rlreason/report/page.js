"use strict";
// Reads values out under the pointer, and swaps the answers that stand side by side. The page is whole without it.
(() => {
  const shown = (x) => {
    const size = Math.abs(x);
    if (!Number.isFinite(x)) return "–";
    if (size >= 1000 && size < 1e6) return Math.round(x).toLocaleString("en-US");
    if (size >= 1e6 || (size > 0 && size < 1e-3)) return x.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
    return String(Number(x.toPrecision(3)));
  };

  for (const plot of document.querySelectorAll(".chart .plot > svg")) {
    const first = Number(plot.dataset.first), last = Number(plot.dataset.last);
    const cursor = plot.querySelector(".cursor");
    const series = [...plot.closest("figure").querySelectorAll(".legend li")].map((item) => {
      const values = Object.fromEntries(Object.entries(item.dataset).map(([key, text]) => [key, JSON.parse(text)]));
      const out = item.querySelector("b");
      return { ...values, out, rest: out.textContent };
    });
    const hint = plot.closest("figure").querySelector("figcaption p"), said = hint.textContent;
    const nearest = (x, step) => {
      let low = 0, high = x.length - 1;
      while (low < high) {
        const middle = (low + high) >> 1;
        if (x[middle] < step) low = middle + 1; else high = middle;
      }
      return low > 0 && step - x[low - 1] < x[low] - step ? low - 1 : low;
    };
    let at = first;
    const show = (step) => {
      const all = series[0].x;
      at = all[nearest(all, step)];
      const place = last > first ? (at - first) / (last - first) * 100 + "%" : "50%";
      cursor.setAttribute("x1", place);
      cursor.setAttribute("x2", place);
      cursor.style.visibility = "visible";
      hint.textContent = "step " + at.toLocaleString("en-US");
      for (const s of series) {
        const i = nearest(s.x, at);
        const raw = s.high ? ` (${shown(s.low[i])} to ${shown(s.high[i])})` : s.low && s.low[i] !== s.mid[i] ? ` (${shown(s.low[i])})` : "";
        s.out.textContent = shown(s.mid[i]) + raw;
      }
    };
    const rest = () => {
      cursor.style.visibility = "hidden";
      hint.textContent = said;
      for (const s of series) s.out.textContent = s.rest;
    };
    const box = plot.parentElement;
    box.addEventListener("pointermove", (event) => {
      const area = plot.getBoundingClientRect();
      const part = Math.min(1, Math.max(0, (event.clientX - area.left) / area.width));
      show(first + part * (last - first));
    });
    box.addEventListener("pointerleave", rest);
    plot.addEventListener("blur", rest);
    plot.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!move) return;
      event.preventDefault();
      const all = series[0].x;
      show(all[Math.min(all.length - 1, Math.max(0, nearest(all, at) + move))]);
    });
  }

  for (const room of document.querySelectorAll(".rollouts")) {
    const form = room.querySelector(".picker"), { left, right, kind, find } = form.elements;
    const rows = [...room.querySelectorAll(".row")].map((row) => ({
      row,
      sides: row.querySelectorAll(".side"),
      cells: new Map([...row.querySelectorAll("article")].map((cell) => [cell.dataset.step, cell])),
      words: row.querySelector(".prompt").textContent.toLowerCase(),
    }));
    const update = () => {
      const text = find.value.trim().toLowerCase();
      let count = 0;
      for (const { row, sides, cells, words } of rows) {
        let kept = 0;
        [left.value, right.value].forEach((step, i) => {
          const cell = i && step === left.value ? undefined : cells.get(step);
          sides[i].replaceChildren(...(cell ? [cell] : []));
          if (cell && (text || kind.value)) for (const fold of cell.querySelectorAll(":scope > details")) fold.open = true;
          for (const sample of cell ? cell.querySelectorAll(".sample") : []) {
            const right_kind = !kind.value || sample.dataset.is.split(" ").includes(kind.value);
            const within = !text || words.includes(text) || sample.textContent.toLowerCase().includes(text);
            sample.hidden = !(right_kind && within);
            kept += !sample.hidden;
          }
        });
        row.hidden = !kept;
        count += kept;
      }
      form.querySelector("output").textContent = count === 1 ? "1 answer" : count + " answers";
    };
    left.value = room.dataset.early;
    right.value = room.dataset.late;
    for (const between of room.querySelectorAll(".between")) between.remove();
    form.addEventListener("input", update);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.hidden = false;
    update();
  }
})();
