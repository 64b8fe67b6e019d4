package pgtest

var RemoveDead = removeDead
