// Pointing at a trial, in the table or in a chart, lights it up everywhere. The page says all without it.
const lit = (name, on) => {
  for (const part of document.querySelectorAll("[data-trial]")) {
    if (part.dataset.trial === name) part.classList.toggle("lit", on);
  }
};
for (const [event, on] of [["mouseover", true], ["mouseout", false]]) {
  document.addEventListener(event, (happened) => {
    const part = happened.target.closest("[data-trial]");
    if (part) lit(part.dataset.trial, on);
  });
}
