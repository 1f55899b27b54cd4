// A reward as its reader writes it, "2 (y > 1) - x^2/4": read into a function of x and y, and never handed to the browser to run.
//
//   comparison  sum [(< | > | <= | >=) sum]        1 where it holds, 0 elsewhere
//   sum         product {(+ | -) product}
//   product     unary {[* | /] unary}              2x and 2(x+y) are products
//   unary       (+ | -) unary | power
//   power       atom [^ unary]
//   atom        number | name | function(comparison, ...) | (comparison)

const FUNCTIONS = {
  abs: Math.abs,
  cos: Math.cos,
  exp: Math.exp,
  log: Math.log,
  max: Math.max,
  min: Math.min,
  sin: Math.sin,
  sqrt: Math.sqrt,
  tanh: Math.tanh,
};
const NAMES = { x: (x) => x, y: (x, y) => y, pi: () => Math.PI };
const INFIX = {
  "+": (a, b) => a + b,
  "-": (a, b) => a - b,
  "*": (a, b) => a * b,
  "/": (a, b) => a / b,
  "<": (a, b) => Number(a < b),
  ">": (a, b) => Number(a > b),
  "<=": (a, b) => Number(a <= b),
  ">=": (a, b) => Number(a >= b),
};
const PLAIN = { "\u2212": "-", "\u00b7": "*", "\u00d7": "*", "\u00b2": "^2", "\u2264": "<=", "\u2265": ">=", "**": "^" };
const LONGEST = 200;

// The function of (x, y) that a text says. Throws an Error whose message is for the reader.
export function parse(text) {
  if (text.length > LONGEST) throw new Error(`Please stay below ${LONGEST} characters.`);
  const source = text.replace(/\*\*|[\u2212\u00b7\u00d7\u00b2\u2264\u2265]/g, (sign) => PLAIN[sign]);
  const tokens = source.match(/\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+|[a-zA-Z]+|<=|>=|\S/g) ?? [];
  let at = 0;
  const peek = () => tokens[at];
  const next = () => tokens[at++];
  const isNumber = (token) => /^[\d.]/.test(token) && token !== ".";
  const expect = (sign) => {
    if (next() !== sign) throw new Error(`A \u201c${sign}\u201d is missing.`);
  };

  function infix(operators, operand) {
    let left = operand();
    while (operators.includes(peek())) left = apply(INFIX[next()], [left, operand()]);
    return left;
  }
  const apply = (f, parts) =>
    parts.length === 2 ? (x, y) => f(parts[0](x, y), parts[1](x, y)) : (x, y) => f(...parts.map((part) => part(x, y)));
  const comparison = () => infix(["<", ">", "<=", ">="], sum);
  const sum = () => infix(["+", "-"], product);
  function product() {
    let left = unary();
    for (;;) {
      if (peek() === "*" || peek() === "/") left = apply(INFIX[next()], [left, unary()]);
      else if (peek() && /^[\d.a-zA-Z(]/.test(peek())) left = apply(INFIX["*"], [left, power()]);
      else return left;
    }
  }
  function unary() {
    if (peek() === "+") return next() && unary();
    if (peek() === "-") return next() && apply((a) => -a, [unary()]);
    return power();
  }
  function power() {
    const base = atom();
    if (peek() !== "^") return base;
    next();
    return apply(Math.pow, [base, unary()]);
  }
  function atom() {
    const token = next();
    if (token === undefined) throw new Error("Something is missing at the end.");
    if (isNumber(token))
      return (
        (value) => () =>
          value
      )(Number(token));
    if (token === "(") {
      const inside = comparison();
      expect(")");
      return inside;
    }
    if (Object.hasOwn(NAMES, token)) return NAMES[token];
    if (!Object.hasOwn(FUNCTIONS, token))
      throw new Error(
        `\u201c${token}\u201d has no place here: use x, y, numbers, + - * / ^ < > and ${Object.keys(FUNCTIONS).join(", ")}.`,
      );
    expect("(");
    const parts = [comparison()];
    while (peek() === ",") next() && parts.push(comparison());
    expect(")");
    const wanted = token === "min" || token === "max" ? parts.length : 1;
    if (parts.length !== wanted) throw new Error(`${token} takes one number.`);
    return apply(FUNCTIONS[token], parts);
  }

  if (!tokens.length) throw new Error("Write a reward, for example 4y.");
  const found = comparison();
  if (at < tokens.length) throw new Error(`\u201c${tokens.slice(at).join(" ")}\u201d is left over.`);
  return found;
}
