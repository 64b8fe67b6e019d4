package localpg

// Argued tells what the arguments of a process alone say.
var Argued = argued
