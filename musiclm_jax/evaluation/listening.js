// The page of a listening test. `test` has the trials; answers stay in this browser until they are saved.
const key = "musiclm listening " + JSON.stringify([test.systems, test.trials]);
let ratings = {};
try {
  ratings = JSON.parse(localStorage.getItem(key) || "{}");
} catch (error) {
  // Some browsers have no storage for pages on the disk: then the page must stay open.
}
const find = (id) => document.getElementById(id);
const players = [...document.querySelectorAll("audio")];
let at = test.trials.findIndex((_, i) => !(i in ratings));
if (at < 0) at = test.trials.length;

function show() {
  const done = at >= test.trials.length;
  find("trial").style.display = done ? "none" : "";
  find("count").textContent = done ? "That was the last pair. Thank you! Please save your answers." : `${at + 1} of ${test.trials.length}`;
  find("back").disabled = at === 0;
  players.forEach((player) => player.pause());
  if (done) return;
  find("text").textContent = test.trials[at].text || "(no text)";
  players.forEach((player, i) => (player.src = test.trials[at].files[i]));
  for (const button of find("scale").children) button.style.outline = ratings[at] === Number(button.value) ? "2px solid" : "";
}

find("scale").addEventListener("click", (event) => {
  if (event.target.tagName !== "BUTTON") return;
  ratings[at] = Number(event.target.value);
  try {
    localStorage.setItem(key, JSON.stringify(ratings));
  } catch (error) {
    // As above.
  }
  at += 1;
  show();
});
find("back").addEventListener("click", () => {
  at -= 1;
  show();
});
find("save").addEventListener("click", () => {
  const answers = Object.entries(ratings).map(([i, rating]) => {
    const { clip, text, first, second } = test.trials[i];
    return { clip, text, first, second, rating };
  });
  const data = JSON.stringify({ format: test.format, systems: test.systems, seed: test.seed, answers }, null, 1);
  const anchor = document.createElement("a");
  anchor.href = URL.createObjectURL(new Blob([data], { type: "application/json" }));
  anchor.download = "answers.json";
  anchor.click();
});
show();
