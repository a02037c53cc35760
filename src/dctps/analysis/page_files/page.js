"use strict";
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  if (body.rows.length < 2) continue;
  heads.forEach((head, column) => {
    const isNumber = head.classList.contains("number"), button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    const key = row => {
      const text = row.cells[column].textContent;
      return isNumber ? parseFloat(text.replaceAll(",", "")) : text;
    };
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const down = before ? before === "ascending" : isNumber;  // of numbers the largest first
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const order = (a, b) => isNumber ? a - b : a.localeCompare(b, undefined, { numeric: true });
      const lacks = value => value === "" || Number.isNaN(value);
      const rows = [...body.rows].map(row => [key(row), row]);
      rows.sort(([a], [b]) => lacks(a) - lacks(b) || (lacks(a) ? 0 : down ? order(b, a) : order(a, b)));
      body.append(...rows.map(([, row]) => row));
    });
  });
}
for (const figure of document.querySelectorAll("figure")) {
  const chart = figure.querySelector(".chart"), tip = figure.querySelector(".tip");
  const spot = figure.querySelector(".spot");
  const curves = [...chart.querySelectorAll(".curve")].map(group => ({
    group,
    tips: JSON.parse(group.dataset.tips),
    points: group.querySelector("polyline").getAttribute("points").split(" ").map(p => p.split(",").map(Number)),
  }));
  chart.querySelectorAll("title").forEach(title => title.remove());  // the browser's own tips are slow
  const light = curve => {
    chart.classList.toggle("dim", Boolean(curve));
    curves.forEach(other => other.group.classList.toggle("on", other === curve));
  };
  const hide = () => { tip.hidden = true; light(null); };
  const show = event => {
    const box = chart.getBoundingClientRect(), scale = chart.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
    let found = null, least = 40 ** 2;
    for (const curve of curves) {
      curve.points.forEach((point, index) => {
        const far = (point[0] - x) ** 2 + (point[1] - y) ** 2;
        if (far < least) { least = far; found = { curve, index, point }; }
      });
    }
    if (!found) return hide();
    light(found.curve);
    spot.setAttribute("cx", found.point[0]);
    spot.setAttribute("cy", found.point[1]);
    tip.textContent = found.curve.tips[found.index];
    tip.hidden = false;
    tip.style.left = "0";  // its own width does not hang on its place
    const left = found.point[0] / scale - tip.offsetWidth / 2;
    tip.style.left = `${Math.max(0, Math.min(left, figure.clientWidth - tip.offsetWidth))}px`;
    const above = box.top - figure.getBoundingClientRect().top;
    tip.style.top = `${above + found.point[1] / scale - tip.offsetHeight - 10}px`;
  };
  chart.addEventListener("pointermove", show);
  chart.addEventListener("pointerdown", show);
  chart.addEventListener("pointerleave", hide);
  figure.querySelectorAll(".keys li").forEach((key, index) => {
    key.addEventListener("pointerenter", () => light(curves[index]));
    key.addEventListener("pointerleave", hide);
  });
}
