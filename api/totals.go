package api

import "github.com/watchword-iot/watchword"

// Totals is the answer of GET /v1/totals: how many devices and services there are in each state. States without a subject are absent.
type Totals struct {
	Devices  map[watchword.State]int64 `json:"devices"`
	Services map[watchword.State]int64 `json:"services"`
}

// LabelTotal is how many subjects have a label with that value.
type LabelTotal struct {
	Key   string `json:"key"`
	Value string `json:"value"`
	Count int64  `json:"count"`
}

// LabelTotalList is the answer of GET /v1/labels, in order of key and value.
type LabelTotalList struct {
	Labels        []LabelTotal `json:"labels"`
	NextPageToken string       `json:"next_page_token,omitempty"`
}
