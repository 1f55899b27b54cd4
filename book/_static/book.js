// A box that scrolls sideways must be reachable with the keyboard.
(() => {
  const boxes =
    ".pst-scrollable-table-container, .cell_output .text_html, .figure-svg, div.highlight pre, mjx-container[display]";
  const watch = new ResizeObserver((entries) =>
    entries.forEach(({ target: box }) => {
      if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }),
  );
  addEventListener("load", () => {
    const maths = window.MathJax?.startup?.promise;
    (maths ?? Promise.resolve()).then(() => document.querySelectorAll(boxes).forEach((box) => watch.observe(box)));
  });
})();
