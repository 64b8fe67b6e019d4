package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/fault"
)

// finding is what any service finds.
type finding interface {
	changes.Finding | checklists.Finding | counters.Finding
}

// diagnosis is a finding, and of which service it is.
type diagnosis struct {
	Service string `json:"service"`
	counters.Finding
}

func (c *cli) doctor() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "What is wrong with any of the services, and what to do",
		Long: `Asks every service what is wrong with it: changes, checklists and counters. It
changes nothing, and exits with 1 if a finding is an error and not only a warning.`,
		Example: `  howdah doctor`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				ofChanges, err := diagnose(ctx, client, "changes", askChanges)
				if err != nil {
					return err
				}
				ofChecklists, err := diagnose(ctx, client, "checklists", askChecklists)
				if err != nil {
					return err
				}
				ofCounters, err := diagnose(ctx, client, "counters", askCounters)
				if err != nil {
					return err
				}
				return diagnosed(c, slices.Concat(ofChanges, ofChecklists, ofCounters), []string{"service"}, func(d diagnosis) ([]any, counters.Finding) {
					return []any{d.Service}, d.Finding
				})
			})
		},
	}
}

// diagnose asks one service. That the role may not ask it is a finding, so that the
// others are heard.
func diagnose[F finding](ctx context.Context, client *howdah.Client, service string, ask func(context.Context, *howdah.Client) ([]F, error)) ([]diagnosis, error) {
	findings, err := ask(ctx, client)
	if errors.Is(err, fault.Denied) {
		return []diagnosis{{service, counters.Finding{Code: "not-looked-at", Severity: "warning", Object: service, Problem: err.Error(), Cure: "run this as a role that may"}}}, nil
	}
	all := make([]diagnosis, len(findings))
	for i, f := range findings {
		all[i] = diagnosis{service, counters.Finding(f)}
	}
	return all, err
}

// doctorOf is the command that asks one service.
func doctorOf[F finding](c *cli, service, short string, ask func(context.Context, *howdah.Client) ([]F, error)) *cobra.Command {
	return &cobra.Command{
		Use:     "doctor",
		Short:   short,
		Long:    short + ".\nExits with 1 if a finding is an error and not only a warning.",
		Example: "  howdah " + service + " doctor",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				findings, err := ask(ctx, client)
				if err != nil {
					return err
				}
				return diagnosed(c, findings, nil, func(f F) ([]any, counters.Finding) { return nil, counters.Finding(f) })
			})
		},
	}
}

// diagnosed prints findings, and fails where one is an error. parts takes one apart,
// into what columns name, and the rest.
func diagnosed[D any](c *cli, all []D, columns []string, parts func(D) ([]any, counters.Finding)) error {
	if len(all) == 0 {
		c.note("nothing to report")
		return nil
	}
	severe := 0
	for _, d := range all {
		if _, f := parts(d); f.Severity == "error" {
			severe++
		}
	}
	err := rows(c, append(columns, "severity", "code", "object", "problem", "cure"), func(d D) []any {
		cells, f := parts(d)
		return append(cells, f.Severity, f.Code, f.Object, f.Problem, f.Cure)
	}, sequence(all))
	if err == nil && severe > 0 {
		err = fmt.Errorf("%s, %s", quantity(len(all), "finding"), quantity(severe, "error"))
	}
	return err
}
