// Draws the timelines of a page and lets one zoom into them. The data is what timelines.py makes.
"use strict";
(() => {
  const SPAN = 15, STRIP = 26, ROW = 9, MOST_LANES = 14, TITLE = 30, GAP = 14;
  const svgElement = (name, attributes, text) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const htmlElement = (name, parent, text) => {
    const made = parent.appendChild(document.createElement(name));
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const us = (value) => `${value.toFixed(2)} µs`;

  // The lowest lane that is free, for rows in order of start; the last takes what finds none.
  const lanesOf = (rows) => {
    const ends = [];
    const lanes = rows.map(([, start, end]) => {
      let lane = ends.findIndex((free) => free <= start);
      if (lane < 0) lane = Math.min(ends.length, MOST_LANES - 1);
      ends[lane] = Math.max(end, ends[lane] ?? 0);
      return lane;
    });
    return [lanes, ends.length];
  };

  const tickStep = (length, most) => {
    const power = 10 ** Math.floor(Math.log10(length / most));
    return [1, 2, 5, 10].map((factor) => factor * power).find((step) => length / step <= most);
  };

  class Viewer {
    constructor(figure) {
      this.data = JSON.parse(figure.querySelector("script").textContent);
      this.from = 0; this.to = this.data.end_us; this.gpu = this.data.first;
      const controls = htmlElement("div", figure); controls.className = "controls";
      const label = htmlElement("label", controls, "show ");
      this.select = htmlElement("select", label);
      for (const [gpu, name] of this.data.gpus) {
        const option = htmlElement("option", this.select, name);
        option.value = gpu; option.selected = gpu === this.gpu;
      }
      this.select.onchange = () => { this.gpu = Number(this.select.value); this.draw(); };
      for (const [text, act, title] of [["+", () => this.zoom(0.6), "zoom in"], ["−", () => this.zoom(1 / 0.6), "zoom out"],
        ["‹", () => this.move(-0.25), "earlier"], ["›", () => this.move(0.25), "later"], ["whole layer", () => this.show(0, this.data.end_us), ""]]) {
        const button = htmlElement("button", controls, text);
        button.type = "button"; button.title = title; button.onclick = act;
      }
      htmlElement("span", controls, "drag to move; click into it, then the wheel zooms; point at something to see what it is");
      this.svg = figure.appendChild(svgElement("svg", { role: "img", "aria-label": "timeline" }));
      this.legend(htmlElement("div", figure));
      this.listen(figure);
      new ResizeObserver(() => this.draw()).observe(figure);
      this.draw();
    }

    legend(parent) {
      parent.className = "legend";
      for (const [stage, name] of this.data.legend) {
        const entry = htmlElement("span", parent);
        htmlElement("i", entry).style.background = this.data.colours[stage];
        entry.append(name);
      }
    }

    listen(figure) {
      this.svg.addEventListener("wheel", (event) => {
        if (!figure.contains(document.activeElement)) return;
        event.preventDefault();
        const at = (event.offsetX - this.left) / (this.width - this.left);
        this.zoom(event.deltaY < 0 ? 0.8 : 1.25, Math.min(Math.max(at, 0), 1));
      }, { passive: false });
      this.svg.addEventListener("pointerdown", (event) => { this.dragged = event.clientX; this.svg.setPointerCapture(event.pointerId); });
      this.svg.addEventListener("pointerup", () => { this.dragged = undefined; });
      this.svg.addEventListener("pointermove", (event) => {
        if (this.dragged === undefined) return;
        this.move((this.dragged - event.clientX) / (this.width - this.left));
        this.dragged = event.clientX;
      });
      figure.addEventListener("keydown", (event) => {
        const act = { "+": () => this.zoom(0.6), "-": () => this.zoom(1 / 0.6), ArrowLeft: () => this.move(-0.1), ArrowRight: () => this.move(0.1) }[event.key];
        if (act && event.target === figure) { event.preventDefault(); act(); }
      });
    }

    zoom(factor, at = 0.5) {
      const length = Math.min(Math.max((this.to - this.from) * factor, 0.05), this.data.end_us);
      const middle = this.from + at * (this.to - this.from);
      this.show(middle - at * length, middle - at * length + length);
    }

    move(part) { const by = part * (this.to - this.from); this.show(this.from + by, this.to + by); }

    show(from, to) {
      const shift = Math.min(Math.max(from, 0), this.data.end_us - (to - from)) - from;
      this.from = Math.max(from + shift, 0); this.to = Math.min(to + shift, this.data.end_us);
      this.draw();
    }

    x(time) { return this.left + (time - this.from) / (this.to - this.from) * (this.width - this.left); }

    rect(stage, start, end, y, height, title, more = {}) {
      if (end < this.from || start > this.to) return 0;
      const left = Math.max(this.x(start), this.left), width = Math.max(Math.min(this.x(end), this.width) - left, 0.7);
      const made = this.svg.appendChild(svgElement("rect", { x: left, y, width, height, fill: this.data.colours[stage], "data-stage": stage, ...more }));
      made.append(svgElement("title", {}, `${title}\n${us(start)} to ${us(end)}, ${us(end - start)}`));
      return width;
    }

    name(text, y, more = {}) {
      this.svg.append(svgElement("text", { x: this.left - 6, y, "text-anchor": "end", class: "faint", ...more }, text));
    }

    draw() {
      this.svg.replaceChildren();
      this.width = this.svg.clientWidth || 800; this.left = this.width < 600 ? 94 : 104;
      let y = 0;
      for (const layer of this.data.layers) y = this.layer(layer, y) + GAP;
      const step = tickStep(this.to - this.from, this.width < 600 ? 4 : 10), digits = Math.max(0, -Math.floor(Math.log10(step)));
      for (let time = Math.ceil(this.from / step) * step; time <= this.to; time += step) {
        this.svg.prepend(svgElement("line", { x1: this.x(time), x2: this.x(time), y1: 0, y2: y - 6, stroke: "#e9ecef" }));
        this.svg.append(svgElement("text", { x: Math.min(this.x(time), this.width - 20), y: y + 8, "text-anchor": "middle" }, time.toFixed(digits)));
      }
      this.name("time, µs", y + 8);
      this.svg.style.height = `${y + 16}px`;
    }

    layer(layer, top) {
      this.svg.append(svgElement("text", { x: 0, y: top + 13, "font-weight": 600, style: "font-size:13px" }, layer.name));
      this.svg.append(svgElement("text", { x: 0, y: top + 27, class: "faint" }, layer.text));
      let y = top + TITLE + 4;
      const begin = y;
      const line = (name, spans) => {
        this.name(name, y + 11);
        for (const [stage, start, end, title, pale] of spans) {
          const width = this.rect(stage, start, end, y + 1, SPAN - 2, title, pale ? { opacity: 0.45 } : {});
          if (width > 6.2 * title.length) {
            const dark = pale || !["dispatch", "gemm1", "software", "paid"].includes(stage);
            this.svg.append(svgElement("text", { x: Math.max(this.x(start), this.left) + 4, y: y + 11, "pointer-events": "none", style: `fill:${dark ? "#212529" : "white"}` }, title));
          }
        }
        y += SPAN;
      };
      line("software", layer.paid.filter(([, , , , gpu]) => gpu < 0 || gpu === this.gpu).map(([text, start, end]) => ["paid", start, end, text]));
      for (const [stage, start, end, name] of layer.spans) line(name, [[stage, start, end, name]]);
      if (layer.path) line("critical path", layer.path);
      for (const [name, parts] of (layer.blocks[this.gpu] ?? [])) { this.strip(name, parts, layer.bin_us, y + 3); y += STRIP; }
      for (const [name, rows] of (layer.rows[this.gpu] ?? [])) y = this.rows(name, rows, y + 4);
      for (const [time, colour, dash] of [[layer.bound_us, "#d55e00", "5 3"], [layer.makespan_us, "#212529", ""]]) {
        if (time < this.from || time > this.to) continue;
        this.svg.append(svgElement("line", { x1: this.x(time), x2: this.x(time), y1: begin, y2: y, stroke: colour, "stroke-dasharray": dash, "pointer-events": "none" }));
      }
      return y;
    }

    strip(name, parts, bin, y) {
      const height = STRIP - 5, first = Math.floor(this.from / bin), last = Math.ceil(this.to / bin);
      this.svg.append(svgElement("rect", { x: this.left, y, width: this.width - this.left, height, fill: "#f1f3f5" }));
      this.name(name, y + 14);
      const below = [];
      for (const [stage, used] of parts) {
        let up = "", down = "";
        for (let place = first; place < Math.min(last, used.length); place++) {
          const base = below[place] ?? 0, head = Math.min(base + used[place], 100);
          const from = Math.max(this.x(place * bin), this.left), to = Math.min(this.x((place + 1) * bin), this.width);
          up += `${up ? "L" : "M"}${from.toFixed(1)} ${(y + height * (1 - head / 100)).toFixed(1)}H${to.toFixed(1)}`;
          down = `L${to.toFixed(1)} ${(y + height * (1 - base / 100)).toFixed(1)}H${from.toFixed(1)}${down}`;
          below[place] = head;
        }
        const made = svgElement("path", { d: up ? `${up}${down}Z` : "M0 0", fill: this.data.colours[stage], "data-stage": stage });
        made.append(svgElement("title", {}, `${name}: ${this.data.names[stage] ?? stage}`));
        this.svg.append(made);
      }
    }

    rows(name, rows, y) {
      const [lanes, count] = lanesOf(rows);
      this.name(name, y + 9);
      rows.forEach(([stage, start, end, title], place) => this.rect(stage, start, end, y + lanes[place] * ROW, ROW - 1, title));
      return y + count * ROW;
    }
  }

  for (const figure of document.querySelectorAll("figure.timeline")) new Viewer(figure);
})();
