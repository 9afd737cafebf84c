// Where a server made the page (evals.report serve): ask every few seconds for a newer one, and take its data.

import { byId } from "./dom.js";

const EVERY = 3000;
const BUSY = ["compare", "runs"]; // views that stay as they are while somebody reads them

/** Call `update(document)` with each newer page. */
export function follow(update) {
  const told = byId("live");
  if (!told) return;
  let made = told.dataset.state;
  const say = (text, broken = false) => {
    if (told.textContent !== text) told.textContent = text;
    told.classList.toggle("broken", broken);
  };
  async function look() {
    if (BUSY.includes(document.body.dataset.view)) say("Live, waits here");
    else if (!document.hidden) {
      try {
        const answer = await fetch("/", { cache: "no-store", headers: { "If-None-Match": `"${made}"` } });
        if (answer.status === 200) {
          await update(new DOMParser().parseFromString(await answer.text(), "text/html"));
          made = answer.headers.get("ETag").slice(1, -1);
          say(`Live, ${new Date().toLocaleTimeString()}`);
        } else if (answer.status !== 304) throw new Error(await answer.text());
        else if (told.classList.contains("broken") || told.textContent.includes("waits")) say("Live");
      } catch (error) {
        say("No answer", true);
        told.title = String(error);
      }
    }
    setTimeout(look, EVERY);
  }
  setTimeout(look, EVERY);
}
