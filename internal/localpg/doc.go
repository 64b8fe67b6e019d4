// Package localpg runs a private PostgreSQL for those who name no other.
package localpg
