(() => {
  const root = document.documentElement;
  const all = (what, within = document) => [...within.querySelectorAll(what)];
  const dark = () => root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  const toggle = document.getElementById("theme");
  const name = () => { toggle.textContent = dark() ? "Light" : "Dark"; };
  root.classList.add("script");
  name();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);
  toggle.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; name(); });

  for (const button of all("button[data-copies]")) {
    button.addEventListener("click", async () => {
      const source = document.getElementById(button.dataset.copies);
      try {
        await navigator.clipboard.writeText(source.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(source);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
  }

  // Tables that sort: headings become buttons, cells are compared by data-value; what has none stays at the end.
  const compared = (a, b) => {
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
    return isNaN(a) || isNaN(b) ? a.localeCompare(b, "en", { numeric: true }) : a - b;
  };
  const sort = (table, column, direction) => {
    const body = table.tBodies[0];
    const value = row => row.cells[column].dataset.value;
    const sign = direction === "ascending" ? 1 : -1;
    const rows = [...body.rows].sort((a, b) => {
      const missing = value(a) === undefined || value(b) === undefined;
      return (missing ? 1 : sign) * compared(value(a), value(b));
    });
    body.append(...rows);
    for (const [i, th] of [...table.tHead.rows[0].cells].entries()) {
      if (i === column) th.setAttribute("aria-sort", direction);
      else th.removeAttribute("aria-sort");
    }
  };
  const first = th => th.dataset.sorts === "down" ? "descending" : "ascending";
  for (const table of all("table.sortable")) {
    if (table.tBodies[0].rows.length < 2) continue;
    for (const [column, th] of [...table.tHead.rows[0].cells].entries()) {
      if (!th.dataset.sorts) continue;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...th.childNodes);
      th.append(button);
      button.addEventListener("click", () => {
        const other = { ascending: "descending", descending: "ascending" };
        sort(table, column, other[th.getAttribute("aria-sort")] ?? first(th));
      });
    }
  }

  // The tools above a table: text, kinds, and on narrow screens, where headings are hidden, a menu to sort by.
  for (const tools of all(".tools")) {
    const table = document.getElementById(tools.dataset.for);
    const text = tools.querySelector("input");
    const kinds = all("button[data-kind]", tools);
    const status = tools.querySelector("[role=status]");
    const menu = tools.querySelector("select");
    const rows = [...table.tBodies[0].rows];
    const filter = () => {
      const wanted = text.value.trim().toLowerCase().split(/\s+/);
      const off = new Set(kinds.filter(k => k.getAttribute("aria-pressed") === "false").map(k => k.dataset.kind));
      for (const row of rows) {
        const words = (row.cells[0].textContent + " " + row.id).toLowerCase();
        row.hidden = off.has(row.dataset.kind) || !wanted.every(word => words.includes(word));
      }
      const shown = rows.filter(row => !row.hidden).length;
      status.textContent = shown === rows.length ? `${shown} arms` : `${shown} of ${rows.length} arms`;
    };
    text.addEventListener("input", filter);
    for (const kind of kinds) {
      kind.addEventListener("click", () => {
        kind.setAttribute("aria-pressed", String(kind.getAttribute("aria-pressed") === "false"));
        filter();
      });
    }
    for (const [column, th] of [...table.tHead.rows[0].cells].entries()) {
      if (th.dataset.sorts) menu.add(new Option(th.textContent, column));
    }
    menu.addEventListener("change", () => {
      if (menu.value) sort(table, Number(menu.value), first(table.tHead.rows[0].cells[menu.value]));
      else table.tBodies[0].append(...rows);
    });
    tools.hidden = false;
    filter();
  }

  // A link into something folded opens it; on paper everything is open.
  const reveal = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let node = target; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
    target?.scrollIntoView();
  };
  addEventListener("hashchange", reveal);
  if (location.hash) reveal();
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = all("details:not([open])");
    for (const details of closed) details.open = true;
  });
  addEventListener("afterprint", () => { for (const details of closed) details.open = false; });
})();
