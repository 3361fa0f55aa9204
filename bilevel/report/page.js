"use strict";
(() => {
  const root = document.documentElement;
  const specs = JSON.parse(document.getElementById("charts").textContent);
  const canvases = [...document.querySelectorAll(".plot > canvas")];
  const token = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const color = (i) => token("--c" + (i % 8));

  function number(v) {
    if (v === 0) return "0";
    const size = Math.abs(v);
    if (size >= 1e6 || size < 1e-3) return v.toExponential(3).replace(/\.?0+e/, "e").replace("e+", "e").replace("-", "−").replace("e-", "e−");
    return String(Number(v.toPrecision(4))).replace("-", "−");
  }
  const short = (text, length = 22) => (text.length > length ? text.slice(0, length - 1) + "…" : text);

  // Whiskers of ± spread, which the library does not draw.
  const whiskers = {
    id: "whiskers",
    afterDatasetDraw(chart, { index, meta }) {
      const set = chart.data.datasets[index];
      if (!set.spread) return;
      const horizontal = chart.options.indexAxis === "y";
      const scale = chart.scales[horizontal ? "x" : "y"];
      const context = chart.ctx;
      context.save();
      context.strokeStyle = token("--ink");
      context.lineWidth = 1.25;
      meta.data.forEach((bar, i) => {
        if (set.data[i] === null || !(set.spread[i] > 0)) return;
        const [low, high] = [-1, 1].map((sign) => scale.getPixelForValue(set.data[i] + sign * set.spread[i]));
        const cap = Math.min(4, (horizontal ? bar.height : bar.width) / 3);
        const point = (value, shift) => (horizontal ? [value, bar.y + shift] : [bar.x + shift, value]);
        context.beginPath();
        for (const [from, to] of [
          [point(low, 0), point(high, 0)],
          [point(low, -cap), point(low, cap)],
          [point(high, -cap), point(high, cap)],
        ]) {
          context.moveTo(...from);
          context.lineTo(...to);
        }
        context.stroke();
      });
      context.restore();
    },
  };

  function axis(title, extra) {
    return {
      title: { display: title !== "", text: short(title, 40), color: token("--soft") },
      grid: { color: token("--grid"), borderColor: token("--line") },
      ...extra,
      ticks: { color: token("--soft"), maxRotation: 60, ...(extra && extra.ticks) },
    };
  }

  // On a logarithmic axis only the powers of ten, unless there are fewer than two of them.
  function log_label(value, index, ticks) {
    const power = (v) => Math.abs(Math.log10(v) - Math.round(Math.log10(v))) < 1e-9;
    const powers = ticks.filter((tick) => power(tick.value)).length;
    if (powers >= 2) return power(value) && (powers < 9 || Math.round(Math.log10(value)) % 2 === 0) ? number(value) : null;
    return [1, 2, 3, 5].includes(Math.round(value / 10 ** Math.floor(Math.log10(value)))) ? number(value) : null;
  }

  function line(spec) {
    const datasets = spec.series.map((series, i) => ({
      label: series.name,
      data: series.x
        .map((x, k) => ({ x, y: series.y[k] === undefined ? null : series.y[k], label: series.labels[k] }))
        .filter((point) => point.x !== null),
      borderColor: color(i),
      backgroundColor: color(i),
      borderWidth: spec.scatter ? 1 : 2,
      borderDash: i >= 8 ? [6, 4] : [],
      pointStyle: spec.scatter ? ["circle", "rect", "triangle", "rectRot"][Math.floor(i / 8) % 4] : "circle",
      pointRadius: spec.scatter ? 5 : series.x.length > 40 ? 0 : 2.5,
      pointHitRadius: 8,
      tension: 0,
    }));
    return {
      type: "line",
      data: { datasets },
      options: {
        interaction: { mode: "nearest", axis: spec.scatter ? "xy" : "x", intersect: false },
        scales: {
          x: axis(spec.xLabel, {
            type: spec.logX ? "logarithmic" : "linear",
            grid: { display: false, borderColor: token("--line") },
            ticks: { callback: spec.logX ? log_label : number },
          }),
          y: axis(spec.yLabel, spec.logY ? { type: "logarithmic", ticks: { callback: log_label } } : { ticks: { callback: number } }),
        },
        plugins: { tooltip: { callbacks: {
          title: (items) => (items.length ? spec.xLabel + " " + number(items[0].parsed.x) : ""),
          label: (item) => " " + (item.raw.label || item.dataset.label) + ": " + number(item.parsed.y),
        } } },
      },
    };
  }

  function bar(spec) {
    const [along, across] = spec.horizontal ? ["y", "x"] : ["x", "y"];
    const datasets = spec.series.map((series, i) => ({
      label: series.name,
      data: series.values,
      spread: series.spread,
      backgroundColor: color(i),
      borderColor: series.markers ? token("--card") : color(i),
      ...(series.markers
        ? { type: "line", showLine: false, pointStyle: "rectRot", pointRadius: 6, pointHoverRadius: 7, pointBorderWidth: 1.5, order: 0 }
        : { order: 1, borderRadius: 3, maxBarThickness: 34, categoryPercentage: 0.78, barPercentage: 0.92 }),
    }));
    let [low, high] = [0, 0];  // the whiskers' reach
    for (const series of spec.series) {
      series.values.forEach((value, k) => {
        const spread = (series.spread && series.spread[k]) || 0;
        low = Math.min(low, value - spread);
        high = Math.max(high, value + spread);
      });
    }
    return {
      type: "bar",
      data: { labels: spec.labels, datasets },
      options: {
        indexAxis: along,
        interaction: { mode: "index", axis: along, intersect: false },
        scales: {
          [along]: axis(spec.labelName, {
            grid: { display: false, borderColor: token("--line") },
            ticks: { autoSkip: !spec.horizontal, callback: (_, i) => short(spec.labels[i]) },
          }),
          [across]: axis(spec.valueLabel, { suggestedMin: low, suggestedMax: high, ticks: { callback: number } }),
        },
        plugins: { tooltip: { callbacks: {
          label(item) {
            const spread = item.dataset.spread && item.dataset.spread[item.dataIndex];
            return " " + item.dataset.label + ": " + number(item.parsed[across]) + (spread > 0 ? " ± " + number(spread) : "");
          },
        } } },
      },
      plugins: [whiskers],
    };
  }

  let charts = [];
  function draw() {
    charts.forEach((chart) => chart.destroy());
    Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
    Chart.defaults.color = token("--ink");
    charts = specs.map((spec, i) => {
      const config = spec.kind === "line" ? line(spec) : bar(spec);
      Object.assign(config.options, { animation: false, responsive: true, maintainAspectRatio: false });
      config.options.plugins.legend = {
        display: spec.series.length > 1,
        position: "bottom",
        labels: { usePointStyle: true, boxWidth: 8, boxHeight: 8, padding: 14, color: token("--ink") },
      };
      return new Chart(canvases[i], config);
    });
    root.dataset.charts = charts.length;
  }

  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  // Paper is white.
  addEventListener("beforeprint", () => { root.dataset.theme = "light"; draw(); });
  addEventListener("afterprint", () => { delete root.dataset.theme; draw(); });
})();
