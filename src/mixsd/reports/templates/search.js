"use strict";
// Facts that hold every word that was typed stay, whatever the case; the page is complete without this.
const box = document.getElementById("search");
const found = document.getElementById("found");
const facts = Array.from(document.querySelectorAll("details.fact"), (element) => [element, element.textContent.toLowerCase()]);
function search() {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const [element, text] of facts) {
    element.hidden = !words.every((word) => text.includes(word));
    shown += element.hidden ? 0 : 1;
  }
  found.textContent = words.length ? `${shown} of ${facts.length} facts` : `${facts.length} facts`;
}
if (box) {
  box.closest("form").hidden = false;
  box.addEventListener("input", search);
  box.closest("form").addEventListener("submit", (event) => event.preventDefault());
  search();
}
