// Keeps the page fresh without a reload: asks for it again every few seconds and replaces the
// sections that changed, except one that is being read from (focus inside, a fold opened).
"use strict";
(() => {
  const EVERY_MS = 5000;
  const label = document.getElementById("live");
  const box = label.querySelector("input");
  label.hidden = false;

  const inUse = (section) =>
    section.contains(document.activeElement) || section.querySelector("details[open]");

  const renew = (fresh) => {
    const main = document.getElementById("main");
    const sections = [...fresh.querySelectorAll("main > section")];
    const ids = sections.map((section) => section.id).join();
    const had = [...main.children].map((section) => section.id).join();
    if (ids !== had) {
      if (!inUse(main)) main.replaceChildren(...sections);
    } else {
      for (const section of sections) {
        const old = document.getElementById(section.id);
        if (old.innerHTML !== section.innerHTML && !inUse(old)) old.replaceWith(section);
      }
    }
    document.title = fresh.title;
    const asOf = fresh.getElementById("as-of");
    if (asOf) document.getElementById("as-of").firstChild.data = asOf.firstChild.data;
  };

  let timer = 0;
  const look = async () => {
    clearTimeout(timer);
    if (box.checked && document.visibilityState === "visible") {
      try {
        const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
        if (answer.redirected) return location.reload();
        renew(new DOMParser().parseFromString(await answer.text(), "text/html"));
      } catch {
        document.getElementById("as-of").firstChild.data = "The dashboard does not answer. ";
      }
    }
    timer = setTimeout(look, EVERY_MS);
  };
  document.addEventListener("visibilitychange", look);
  timer = setTimeout(look, EVERY_MS);
})();
