module github.com/watchword-iot/watchword

go 1.26.0

require (
	github.com/eclipse/paho.golang v0.23.0
	github.com/go-json-experiment/json v1.27.2
	golang.org/x/mod v0.42.0
)
