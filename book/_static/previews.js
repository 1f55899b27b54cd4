// A look at what a link leads to: hover or focus a reference to an equation, a term or a work.
// The card stays while the pointer is on it, and goes with Escape, as WCAG 1.4.13 asks.
(() => {
  const root = new URL(document.documentElement.dataset.content_root || "./", location.href);
  const links = 'article a[href*="#equation-"], article a[href*="#term-"], article a[href*="bibliography.html#"]';
  const card = document.createElement("div");
  card.id = "link-preview";
  card.setAttribute("role", "tooltip");
  card.hidden = true;
  let shown = null; // the link whose card is open, or about to be
  let timer = 0;
  let data = null;

  const load = () =>
    (data ??= new Promise((done) => {
      const script = document.createElement("script");
      script.src = new URL("_static/previews-data.js", root);
      script.onload = () => done(window.bookPreviews);
      script.onerror = () => done({});
      document.head.append(script);
    }));

  const close = () => {
    clearTimeout(timer);
    shown?.removeAttribute("aria-describedby");
    shown = null;
    card.hidden = true;
  };

  const place = (link) => {
    const at = link.getClientRects()[0] ?? link.getBoundingClientRect();
    const width = document.documentElement.clientWidth;
    card.style.left = `${scrollX + Math.max(8, Math.min(at.left, width - card.offsetWidth - 8))}px`;
    const below = at.bottom + 6;
    const fits = below + card.offsetHeight < innerHeight || at.top < card.offsetHeight + 6;
    card.style.top = `${scrollY + (fits ? below : at.top - card.offsetHeight - 6)}px`;
  };

  const open = async (link) => {
    const target = new URL(link.href);
    const html = (await load())[decodeURIComponent(target.href.slice(root.href.length))];
    if (!html || shown !== link) return;
    if (!card.isConnected) document.body.append(card);
    window.MathJax?.typesetClear?.([card]);
    card.innerHTML = html;
    card.style.visibility = "hidden";
    card.hidden = false;
    await window.MathJax?.typesetPromise?.([card]);
    if (shown !== link) return;
    place(link);
    card.style.visibility = "";
    link.setAttribute("aria-describedby", card.id);
  };

  const soon = (link, delay) => {
    clearTimeout(timer);
    if (link === shown && !card.hidden) return;
    if (link !== shown) close();
    shown = link;
    timer = setTimeout(() => open(link), delay);
  };
  const later = () => {
    clearTimeout(timer);
    timer = setTimeout(close, 250);
  };

  const linkOf = (event) => (event.target instanceof Element ? event.target.closest(links) : null);
  addEventListener("pointerover", (event) => {
    if (event.pointerType !== "mouse") return;
    const link = linkOf(event);
    if (link) soon(link, 200);
    else if (card.contains(event.target)) clearTimeout(timer);
  });
  addEventListener("pointerout", (event) => {
    if (event.pointerType === "mouse" && (linkOf(event) || card.contains(event.target))) later();
  });
  addEventListener("focusin", (event) => {
    const link = linkOf(event);
    if (link?.matches(":focus-visible")) soon(link, 0);
  });
  addEventListener("focusout", (event) => linkOf(event) && later());
  addEventListener("keydown", (event) => event.key === "Escape" && close());
})();
