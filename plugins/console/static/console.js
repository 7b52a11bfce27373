// What a page cannot do by itself: follow the shell's theme, open Airflow's pages in the shell, keys, one player, and
// live progress. Without it every page is still whole.
"use strict";

const shell = (() => {
  try {
    // Airflow shows the console in a frame of the same origin; its document says which theme it has.
    return window.parent !== window && window.parent.document.getElementById("root") ? window.parent : null;
  } catch {
    return null;
  }
})();

function followTheme() {
  const theirs = shell.document.documentElement;
  const dark = theirs.classList.contains("dark") || theirs.style.colorScheme === "dark";
  const light = theirs.classList.contains("light") || theirs.style.colorScheme === "light";
  if (dark || light) document.documentElement.dataset.theme = dark ? "dark" : "light";
}

if (shell) {
  followTheme();
  const observer = new MutationObserver(followTheme);
  observer.observe(shell.document.documentElement, { attributes: true, attributeFilter: ["class", "style"] });
  window.addEventListener("pagehide", () => observer.disconnect());
}

// A frame may not move the shell, so the shell's own document follows the link.
function openInShell(event) {
  const link = event.target.closest("a[data-shell]");
  if (!link || !shell || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  const theirs = shell.document.createElement("a");
  theirs.href = link.href;
  theirs.click();
}

function follow(rel) {
  document.querySelector(`a[rel=${rel}]`)?.click();
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, select, textarea, audio, pre, .scroll")) return;
  const audio = document.querySelector("audio");
  if (event.key === "ArrowLeft") follow("prev");
  else if (event.key === "ArrowRight") follow("next");
  else if (event.key === "/" && document.querySelector("input[type=search]")) {
    event.preventDefault();
    document.querySelector("input[type=search]").focus();
  } else if (event.key === "p" && audio?.src) {
    if (audio.paused) audio.play().catch(() => {});
    else audio.pause();
  }
}

// The list has one player for all its samples: a clip that starts ends the one before.
function playFromList(event) {
  const button = event.target.closest("button[data-audio]");
  if (!button) return;
  const box = document.querySelector(".player");
  const audio = box.querySelector("audio");
  if (button.getAttribute("aria-pressed") === "true" && !audio.paused) {
    audio.pause();
    return;
  }
  for (const other of document.querySelectorAll("button[data-audio]")) other.setAttribute("aria-pressed", "false");
  button.setAttribute("aria-pressed", "true");
  box.hidden = false;
  box.querySelector("output").textContent = "";
  audio.src = button.dataset.audio;
  audio.play().catch(() => {});
}

// Why a clip cannot be played is what the server answers in place of it.
async function explainSilence(event) {
  const audio = event.target;
  const output = audio.parentElement.querySelector("output");
  if (!output || !audio.src) return;
  const answer = await fetch(audio.src, { headers: { Range: "bytes=0-0" } });
  const page = new DOMParser().parseFromString(answer.ok ? "" : await answer.text(), "text/html");
  output.textContent = page.querySelector("main")?.textContent.trim() || "The browser cannot play this clip.";
}

async function refresh() {
  const live = document.getElementById("live");
  if (live?.dataset.live !== "yes" || document.hidden || live.contains(document.activeElement)) return;
  const answer = await fetch(location.href);
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const fresh = page.getElementById("live");
  if (fresh) live.replaceWith(fresh);
}

document.addEventListener("DOMContentLoaded", () => {
  document.addEventListener("click", openInShell);
  document.addEventListener("click", playFromList);
  document.addEventListener("keydown", onKey);
  for (const audio of document.querySelectorAll("audio")) audio.addEventListener("error", explainSilence);
  // Blank choices would only make the address long.
  document.querySelector("form.filters")?.addEventListener("formdata", (event) => {
    for (const [name, value] of [...event.formData]) if (!value) event.formData.delete(name);
  });
  if (document.getElementById("live")) setInterval(refresh, 5000);
});
