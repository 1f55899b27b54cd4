// What the search of the book ranks first: a chapter before what documents the library, whatever its score in there.
var Scorer = {
  score: ([docname, , , , score]) => (docname.startsWith("book/api") || docname.startsWith("genindex") ? score - 1000 : score),
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
