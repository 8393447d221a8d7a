// Draws every figure of the report; a figure's data stands beside it, as JSON that is never executed.
const plots = [];
for (const holder of document.querySelectorAll("div.figure")) {
  const spec = JSON.parse(holder.querySelector("script").textContent);
  const place = document.createElement("div");
  holder.append(place);
  Plotly.newPlot(place, spec.data, spec.layout, { responsive: true, displaylogo: false });
  plots.push(place);
}
// paper is narrower than most windows; plots keep the size of the window unless told
addEventListener("beforeprint", () => plots.forEach((place) => Plotly.relayout(place, { width: 680 })));
addEventListener("afterprint", () => plots.forEach((place) => Plotly.relayout(place, { width: null, autosize: true })));
