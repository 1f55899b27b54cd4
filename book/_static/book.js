// A box that scrolls sideways must be reachable with the keyboard.
(() => {
  const boxes =
    ".pst-scrollable-table-container, .cell_output .text_html, .figure-svg, div.highlight pre, mjx-container[display]";
  const ask = (box) => {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  };
  const watch = new ResizeObserver((entries) => entries.forEach(({ target }) => ask(target)));
  // The dark theme sets other words of code bold, which makes lines wider and no box.
  const theme = new MutationObserver(() => document.querySelectorAll(boxes).forEach(ask));
  theme.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
  addEventListener("load", () => {
    const maths = window.MathJax?.startup?.promise;
    (maths ?? Promise.resolve()).then(() => document.querySelectorAll(boxes).forEach((box) => watch.observe(box)));
  });
})();
