(() => {
  document.documentElement.classList.add("script");
  const made = (name, style, text = "") => {
    const element = document.createElement(name);
    element.className = style;
    element.textContent = text;
    return element;
  };
  for (const mapper of document.querySelectorAll(".mapper")) {
    const { names, styles, noun, places, labels, columns } = JSON.parse(mapper.querySelector("script").textContent);
    const drawings = [...mapper.querySelectorAll(".coordinate")];
    const select = mapper.querySelector("select");
    const panel = mapper.querySelector(".members");
    const empty = panel.firstElementChild;
    let chosen = null;

    const member = place => {
      const item = made("li", "");
      const name = names[labels[place]] ?? "";
      const image = made("span", `thumbnail ${styles[labels[place]] ?? ""}`);
      image.setAttribute("role", "img");
      image.setAttribute("aria-label", `training ${noun} ${places[place]}${name && `, class ${name}`}`);
      image.title = image.getAttribute("aria-label");
      item.append(image, made("small", "", name));
      panel.lastElementChild.append(item);
      const { width, height } = getComputedStyle(image);
      const across = -parseFloat(width) * (place % columns), down = -parseFloat(height) * Math.floor(place / columns);
      image.style.backgroundPosition = `${across}px ${down}px`;
    };
    const choose = node => {
      chosen?.classList.remove("chosen");
      chosen?.setAttribute("aria-pressed", "false");
      chosen = node;
      if (!node) return panel.replaceChildren(empty);
      node.classList.add("chosen");
      node.setAttribute("aria-pressed", "true");
      const [first, ...others] = node.querySelector("title").textContent.split("\n");
      const shown = node.dataset.shown ? node.dataset.shown.split(" ").map(Number) : [];
      panel.replaceChildren(made("p", "chosen-node", first));
      if (others.length) panel.append(made("p", "quiet", others.join(" · ")));
      if (columns && shown.length) {
        panel.append(made("ul", ""));
        shown.forEach(member);
      } else if (shown.length) {
        const listed = shown.map(place => places[place]).sort((a, b) => a - b).join(", ");
        panel.append(made("p", "quiet", `Of these, places among the training ${noun}s: ${listed}`));
      } else {
        panel.append(made("p", "quiet", `No ${noun} is kept of it: the page would be too large.`));
      }
    };

    // One stop of the tab key for each drawing; arrow keys go from node to node.
    for (const drawing of drawings) {
      drawing.querySelector(".graph").setAttribute("role", "group"); // what is in a picture cannot be chosen
      const nodes = [...drawing.querySelectorAll(".node")];
      const stop = (node, focused) => {
        for (const other of nodes) other.setAttribute("tabindex", other === node ? 0 : -1);
        if (focused) node.focus();
      };
      stop(nodes[0], false);
      for (const [i, node] of nodes.entries()) {
        node.setAttribute("role", "button");
        node.setAttribute("aria-pressed", "false");
        node.addEventListener("click", () => { stop(node, false); choose(node); });
        node.addEventListener("keydown", event => {
          const to = { ArrowRight: i + 1, ArrowDown: i + 1, ArrowLeft: i - 1, ArrowUp: i - 1, Home: 0, End: nodes.length - 1 };
          if (event.key === "Enter" || event.key === " ") choose(node);
          else if (nodes[to[event.key]]) stop(nodes[to[event.key]], true);
          else return;
          event.preventDefault();
        });
      }
    }
    const show = () => {
      for (const [i, drawing] of drawings.entries()) drawing.hidden = i !== (select?.selectedIndex ?? 0);
      choose(null);
    };
    select?.addEventListener("change", show);
    show();
  }
})();
