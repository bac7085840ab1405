package main

import (
	"context"
	"fmt"

	"github.com/watchword-iot/watchword"
)

// The subjects that edits of policies are for.
const (
	toOne   = "subjects = [\"dev-000042\"]\n"
	toSite  = "for = { kind = \"lamp\", site = \"plant-001\" }\n"
	toKind  = "for = { kind = \"lamp\" }\n"
	toAll   = "for = {}\n"
	service = "for = {}\nkinds = [\"service\"]\n"
)

var policyOperations = []operation{
	{name: "policy apply, one device", goal: "≤ 20 ms", run: apply(toOne)},
	{name: "policy apply, lamps of a site", run: apply(toSite)},
	{name: "policy apply, all lamps", run: apply(toKind)},
	{name: "policy apply, all devices", goal: "≤ 1 s", run: apply(toAll)},
	{name: "policy apply, all services", run: apply(service)},
	{name: "policy delete, one device", goal: "≤ 20 ms", run: remove(toOne)},
	{name: "policy delete, all devices", goal: "≤ 1 s", run: remove(toAll)},
	{name: "policy check, one device", goal: "≤ 20 ms", run: check(toOne)},
	{name: "policy check, all devices", goal: "≤ 1 s", run: check(toAll)},
	{name: "policy diff, one device", run: diff(toOne)},
	{name: "policy diff, all devices", run: diff(toAll)},
	{name: "device label", run: label},
}

const edited = "bench"

var edits int // so that no text is applied twice

func document(selector string) []byte {
	edits++
	return fmt.Appendf(nil, "%s[[allow]]\npublish = [\"bench/%d/${id}\"]\nsubscribe = [\"bench/%d/#\"]\n", selector, edits, edits)
}

// apply replaces a policy that was in force by another text.
func apply(selector string) func(context.Context, *fleet, *meter) error {
	return func(ctx context.Context, f *fleet, m *meter) error {
		if _, err := f.admin.ApplyPolicy(ctx, edited, document(selector), -1); err != nil {
			return err
		}
		if err := f.settle(ctx); err != nil {
			return err
		}
		text := document(selector)
		if err := m.time(func() error {
			_, err := f.admin.ApplyPolicy(ctx, edited, text, -1)
			return err
		}); err != nil {
			return err
		}
		return f.admin.DeletePolicy(ctx, edited)
	}
}

func remove(selector string) func(context.Context, *fleet, *meter) error {
	return func(ctx context.Context, f *fleet, m *meter) error {
		if _, err := f.admin.ApplyPolicy(ctx, edited, document(selector), -1); err != nil {
			return err
		}
		if err := f.settle(ctx); err != nil {
			return err
		}
		return m.time(func() error { return f.admin.DeletePolicy(ctx, edited) })
	}
}

func check(selector string) func(context.Context, *fleet, *meter) error {
	return func(ctx context.Context, f *fleet, m *meter) error {
		text := document(selector)
		return m.time(func() error { return f.admin.CheckPolicy(ctx, edited, text) })
	}
}

func diff(selector string) func(context.Context, *fleet, *meter) error {
	return func(ctx context.Context, f *fleet, m *meter) error {
		text := document(selector)
		return m.time(func() error {
			_, err := f.admin.DiffPolicy(ctx, edited, text)
			return err
		})
	}
}

func label(ctx context.Context, f *fleet, m *meter) error {
	d := f.deviceAt(42)
	l := watchword.Labels{"kind": d.labels["kind"], "model": d.labels["model"], "site": d.labels["site"], "floor": "2"}
	if err := m.time(func() error {
		_, err := f.admin.SetLabels(ctx, d.id, l, -1)
		return err
	}); err != nil {
		return err
	}
	_, err := f.admin.SetLabels(ctx, d.id, d.labels, -1)
	return err
}
