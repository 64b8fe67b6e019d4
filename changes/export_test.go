package changes

// MostSpecific is what will choose a consumer's handler.
var MostSpecific = mostSpecific

// Compact is compact.
var Compact = compact
