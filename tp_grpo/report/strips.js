// Filmstrips: sorting, one epoch at a time, and arrow keys between the steps.
(() => {
  const status = document.getElementById("status");

  function sort(list, by) {
    const value = (row) => Number(row.dataset[by]) || 0;
    const order = (a, b) => (by === "member" ? 0 : value(b) - value(a)) || a.dataset.member - b.dataset.member;
    list.append(...[...list.children].sort(order));
    one(list);
  }

  // One stop for Tab in a group, wherever the arrow keys left it.
  function one(list) {
    const steps = [...list.querySelectorAll(".step")];
    steps.forEach((step, i) => { step.tabIndex = i ? -1 : 0; });
  }

  function move(list, from, key) {
    const rows = [...list.children], row = from.closest(".strip");
    const steps = [...row.querySelectorAll(".step")], at = steps.indexOf(from);
    const within = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: steps.length - 1 }[key];
    if (within !== undefined) return steps[within];
    const other = rows[rows.indexOf(row) + { ArrowUp: -1, ArrowDown: 1 }[key]];
    return other && other.querySelectorAll(".step")[at];
  }

  for (const list of document.querySelectorAll(".strips")) {
    one(list);
    list.addEventListener("keydown", (event) => {
      const from = event.target.closest(".step");
      if (!from) return;
      if (event.key === "Escape") from.classList.add("closed");
      if (!/^(Arrow(Left|Right|Up|Down)|Home|End)$/.test(event.key)) return;
      event.preventDefault();
      const to = move(list, from, event.key);
      if (!to) return;
      from.tabIndex = -1;
      to.tabIndex = 0;
      to.focus();
    });
    for (const kind of ["focusout", "pointerout"]) {
      list.addEventListener(kind, (event) => event.target.closest(".step")?.classList.remove("closed"));
    }
  }

  for (const section of document.querySelectorAll("main > section")) {
    const groups = section.querySelectorAll(".group");
    const by = section.querySelector(".sort"), epoch = section.querySelector(".epoch");
    if (!epoch) continue;
    const show = () => groups.forEach((group) => { group.hidden = group.dataset.epoch !== epoch.value; });
    by?.addEventListener("change", () => {
      section.querySelectorAll(".strips").forEach((list) => sort(list, by.value));
      status.textContent = `Trajectories sorted by ${by.selectedOptions[0].textContent}`;
    });
    epoch.addEventListener("change", () => {
      show();
      status.textContent = `${by ? "Trajectories" : "Images"} of epoch ${epoch.value}`;
    });
    show();
  }
})();
