package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/token"
)

const (
	worstTurns   = 5  // each without and with the attack
	worstSeconds = 6  // of one turn
	worstOthers  = 20 // devices beside the attacker
)

// What the others do, in order, with how often a second: all of them together.
var worstActs = []struct {
	name string
	rate int
}{
	{"event, QoS 1, published to received by a service that has all events, the attacker's too", 150},
	{"the same event, received by a service that has those of the others alone", 150},
	{"GET /v1/self", 100},
	{"command to verified receipt", 30},
	{"token request", 30},
}

// worst: what one device with default rights can do to the others when it does its worst, in turns
// without it. The server is the product's own program, with default limits. Each attack is of a new
// device, since what one sent goes on being held back long after it was sent.
func (l *load) worst(ctx context.Context) (err error) {
	seconds := max(int(worstSeconds*l.scale), 1)
	calm, err := l.worstControl(ctx, seconds)
	if err != nil {
		return err
	}
	w := &worstCase{dir: filepath.Join(l.dir, "worst"), seconds: seconds}
	if err := w.start(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.p.stop()) }()
	fmt.Printf("\n### One device does its worst, %d others beside it\n\n", worstOthers)
	fmt.Printf("The product's program with default limits; no policy but the built-in ones. Turns of %d s, %d without and %d with the attack, after each of which the attacker is deleted. The attacker comes from an address of its own, and is a process with nice 19: it takes what time the others and the server leave of the same cores.\n\n", w.seconds, worstTurns, worstTurns)
	fmt.Printf("| turn | attacker | lost | refused | heap | resident | server's CPU |\n|---|---|---|---|---|---|---|\n")
	var full float64
	var p99 [2][][]float64 // by attack, act, turn
	for i := range p99 {
		p99[i] = make([][]float64, len(worstActs))
	}
	lost := 0
	for turn := range worstTurns {
		for attacked := range 2 {
			if attacked == 1 {
				if err := w.p.house.enroll(ctx, worstOthers+turn+1); err != nil {
					return err
				}
			}
			began := w.p.cpu()
			r, err := w.turn(ctx, turn*2+attacked, attacked == 1)
			if err != nil {
				return err
			}
			cpu := w.p.cpu() - began
			heap, err := w.metric(ctx, "go_memstats_heap_alloc_bytes")
			if err != nil {
				return err
			}
			fmt.Printf("| %d | %s | %d | %d | %.1f MB | %.1f MB | %.1f s |\n", turn+1, []string{"idle", "attacks"}[attacked], r.lost, r.refused, heap/1e6, float64(w.p.rss())/1e3, cpu.Seconds())
			for _, why := range r.whys {
				fmt.Fprintln(os.Stderr, "mqttload:", why)
			}
			lost += r.lost
			for i, took := range r.took {
				if len(took) == 0 {
					return fmt.Errorf("%s: none was answered", worstActs[i].name)
				}
				slices.Sort(took)
				p99[attacked][i] = append(p99[attacked][i], ms(took[len(took)*99/100]))
			}
			if attacked == 0 {
				continue
			}
			if turn == worstTurns-1 {
				if full, err = w.liveHeap(ctx); err != nil {
					return err
				}
			}
			if err := w.deleteAttacker(ctx); err != nil { // and with it what it still has on its way
				return err
			}
		}
	}
	fmt.Printf("\n| p99, median of %d | attacker idle | attacks | ratio, promised ≤ 2 |\n|---|---|---|---|\n", worstTurns)
	for i, act := range worstActs {
		idle, attacks := median(p99[0][i]), median(p99[1][i])
		fmt.Printf("| %s, %d a second | %.1f ms | %.1f ms | %.2f |\n", act.name, act.rate, idle, attacks, attacks/idle)
	}
	fmt.Printf("\n| the attacker, all turns | sent | refused, broken | the last of these |\n|---|---|---|---|\n")
	for _, d := range w.attacker {
		fmt.Printf("| %s | %d | %d | %s |\n", d.Name, d.Did[0], d.Did[1], clip(d.Last))
	}
	after, err := w.liveHeap(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("\nLive heap after a collection: %.2f MB after the last attack, %.2f MB once the attacker was deleted; %.2f MB on another server that had the same %d turns of the others and no attack: %+.1f %% (promised: within 10 %%).\n", full/1e6, after/1e6, calm/1e6, 2*worstTurns, 100*(after-calm)/calm)
	if lost > 0 {
		return fmt.Errorf("%d messages of others were lost", lost)
	}
	return nil
}

// worstControl is what the live heap of a server is that had all turns without an attack: what the
// others have it remember (tokens, events for who comes back) counts on both sides.
func (l *load) worstControl(ctx context.Context, seconds int) (heap float64, err error) {
	w := &worstCase{dir: filepath.Join(l.dir, "calm"), seconds: seconds}
	if err := w.start(ctx); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, w.p.stop()) }()
	for turn := range 2 * worstTurns {
		if _, err := w.turn(ctx, turn, false); err != nil {
			return 0, err
		}
	}
	for turn := range worstTurns { // which attack nobody here
		if err := errors.Join(w.p.house.enroll(ctx, worstOthers+turn+1), w.deleteAttacker(ctx)); err != nil {
			return 0, err
		}
	}
	return w.liveHeap(ctx)
}

// worstCase is the server under attack, and what is noted.
type worstCase struct {
	dir      string
	seconds  int
	p        *peer
	metrics  string // address
	hc       *http.Client
	mu       sync.Mutex  // of the others' tokens
	attacker []attackDid // in all turns
}

// start builds and starts the product's program and enrolls all devices.
func (w *worstCase) start(ctx context.Context) error {
	if err := os.MkdirAll(w.dir, 0o700); err != nil {
		return err
	}
	program := filepath.Join(w.dir, "watchword")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", program, "github.com/watchword-iot/watchword/cmd/watchword").CombinedOutput(); err != nil {
		return fmt.Errorf("the program does not build: %w: %s", err, out)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	w.metrics = free.Addr().String()
	if err := free.Close(); err != nil {
		return err
	}
	config := filepath.Join(w.dir, "watchword.toml")
	text := "[server]\nhttps = \"localhost:0\"\nmqtts = \"localhost:0\"\n[metrics]\nlisten = \"" + w.metrics + "\"\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	w.p = &peer{name: "Watchword", process: exec.Command(program, "serve", "--config", config, "--data", filepath.Join(w.dir, "data"))}
	path := os.Getenv("LOAD_LOG")
	if path == "" {
		path = filepath.Join(w.dir, "log")
	}
	log, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close() // the server has its own
	w.p.process.Stderr = log
	if err := w.p.process.Start(); err != nil {
		return err
	}
	if err := w.ready(ctx); err != nil {
		return errors.Join(err, w.p.stop())
	}
	if err := w.p.attach(w.dir); err != nil {
		return errors.Join(err, w.p.stop())
	}
	w.hc = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: w.p.house.tls, MaxIdleConnsPerHost: 64}}
	if err := w.p.house.enroll(ctx, worstOthers); err != nil {
		return errors.Join(err, w.p.stop())
	}
	return nil
}

// deleteAttacker deletes the device that was enrolled last.
func (w *worstCase) deleteAttacker(ctx context.Context) error {
	h := w.p.house
	id := h.devices[len(h.devices)-1].id
	if _, err := h.admin.Revoke(ctx, id, "compromised"); err != nil {
		return err
	}
	return h.admin.DeleteDevice(ctx, id)
}

func (w *worstCase) ready(ctx context.Context) error {
	var last error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		var b []byte
		if b, last = get(ctx, http.DefaultClient, "http://"+w.metrics+"/readyz", ""); last == nil && len(b) == 0 {
			return nil
		}
	}
	return fmt.Errorf("the server is not ready: %w", last)
}

// get returns the body of an answer of status 200.
func get(ctx context.Context, hc *http.Client, to, bearer string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, to, http.NoBody)
	if err != nil {
		return nil, err
	}
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	return answer(hc, req)
}

func answer(hc *http.Client, req *http.Request) ([]byte, error) {
	res, err := hc.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: status %d: %s", req.Method, req.URL.Path, res.StatusCode, b)
	}
	return b, err
}

// clip is what of an error fits into a table.
func clip(text string) string {
	const most = 120
	if _, detail, ok := strings.Cut(text, `"detail":"`); ok { // of a problem
		text, _, _ = strings.Cut(detail, `"`)
	}
	return strings.ReplaceAll(text[:min(len(text), most)], "|", " ")
}

// metric is one number that /metrics gives.
func (w *worstCase) metric(ctx context.Context, name string) (float64, error) {
	b, err := get(ctx, http.DefaultClient, "http://"+w.metrics+"/metrics", "")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(rest), 64)
		}
	}
	return 0, fmt.Errorf("/metrics has no %s", name)
}

// liveHeap is what the server's heap holds after a collection. A server that rests collects once in
// two minutes; asking it for its metrics makes enough garbage to have it collect earlier.
func (w *worstCase) liveHeap(ctx context.Context) (float64, error) {
	time.Sleep(3 * time.Second) // what is closed and deleted is put away
	collections := func() (float64, error) { return w.metric(ctx, "go_gc_duration_seconds_count") }
	first, err := collections()
	if err != nil {
		return 0, err
	}
	for end := time.Now().Add(5 * time.Minute); time.Now().Before(end); { // two, since finalizers and pools hold things through the first
		n, err := collections()
		if err != nil {
			return 0, err
		}
		if n < first+2 {
			continue
		}
		time.Sleep(100 * time.Millisecond) // it is swept
		return w.metric(ctx, "go_memstats_heap_alloc_bytes")
	}
	return 0, errors.New("the server did not collect its garbage in five minutes")
}

// worstTurn is what came of one turn.
type worstTurn struct {
	took          [][]time.Duration // by act; of those that were answered
	lost, refused int
	whys          []string // a few of the reasons

	mu sync.Mutex
}

func (r *worstTurn) note(act int, took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.took[act] = append(r.took[act], took)
}

func (r *worstTurn) why(err error) {
	if len(r.whys) < 5 {
		r.whys = append(r.whys, err.Error())
	}
}

// missed notes a message that did not arrive, or a request that was refused.
func (r *worstTurn) missed(lost bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if lost {
		r.lost++
	} else {
		r.refused++
	}
	r.why(err)
}

// worstEvents is the events of one turn, as two services receive them.
type worstEvents struct {
	start time.Time
	sent  []atomic.Int64 // since start, in ns
	came  [2][]atomic.Bool
	n     [2]atomic.Int64
}

// on is called with what the i-th service receives.
func (e *worstEvents) on(i, turn int, r *worstTurn) func(*message) {
	return func(m *message) {
		if len(m.Payload) != 8 || !strings.HasSuffix(m.Topic, "/events/worst") || binary.BigEndian.Uint32(m.Payload) != uint32(turn) {
			return // the attacker's
		}
		at := binary.BigEndian.Uint32(m.Payload[4:])
		if !e.came[i][at].Swap(true) {
			r.note(i, time.Since(e.start)-time.Duration(e.sent[at].Load()))
			e.n[i].Add(1)
		}
	}
}

func (w *worstCase) turn(ctx context.Context, number int, attacked bool) (*worstTurn, error) {
	r := &worstTurn{took: make([][]time.Duration, len(worstActs))}
	total := worstActs[0].rate * w.seconds
	events := &worstEvents{start: time.Now(), sent: make([]atomic.Int64, total), came: [2][]atomic.Bool{make([]atomic.Bool, total), make([]atomic.Bool, total)}}
	var services []*client
	defer func() { gone(services...) }()
	for i, filters := range [][]string{{"devices/+/events/#"}, othersEvents()} {
		c, err := w.service(ctx, strconv.Itoa(i), filters, events.on(i, number, r))
		if err != nil {
			return nil, err
		}
		services = append(services, c)
	}
	fleet, err := w.fleet(ctx, r)
	defer gone(fleet...)
	if err != nil {
		return nil, err
	}
	over := func() error { return nil }
	if attacked {
		if over, err = w.attack(ctx, number); err != nil {
			return nil, err
		}
		time.Sleep(time.Second) // it is under way
	}
	acts := []func(i int) (lost bool, err error){
		func(i int) (bool, error) {
			payload := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, uint32(number)), uint32(i))
			from := i % worstOthers
			events.sent[i].Store(int64(time.Since(events.start)))
			return true, fleet[from].send(&packet.Publish{Topic: fmt.Sprintf("devices/dev-%d/events/worst", from), QoS: 1, ID: uint16(i%60000 + 1), Payload: payload})
		},
		nil, // the second service's
		func(i int) (bool, error) {
			_, err := get(ctx, w.hc, w.p.house.place.URL+"/v1/self", w.token(i%worstOthers))
			return false, err
		},
		func(i int) (bool, error) {
			done, err := w.p.house.order(ctx, watchword.SubjectID(fmt.Sprintf("dev-%d", i%worstOthers)))
			if err == nil && !done {
				err = errors.New("a command was not done")
			}
			return true, err
		},
		func(i int) (bool, error) { return false, w.renew(ctx, i%worstOthers) },
	}
	var wg sync.WaitGroup
	for act, do := range acts {
		if do == nil {
			continue
		}
		wg.Go(func() {
			rate := worstActs[act].rate
			began := time.Now()
			for i := range rate * w.seconds {
				time.Sleep(time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(rate))))
				wg.Go(func() {
					at := time.Now()
					if lost, err := do(i); err != nil {
						r.missed(lost && act != 0, err) // what is lost of events is counted below
					} else if act != 0 {
						r.note(act, time.Since(at))
					}
				})
			}
		})
	}
	wg.Wait()
	for i, c := range services {
		for end := time.Now().Add(20 * time.Second); events.n[i].Load() < int64(total) && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
		}
		for range total - int(events.n[i].Load()) {
			r.missed(true, fmt.Errorf("the service %d did not receive an event", i))
		}
		select {
		case <-c.end:
			r.missed(true, fmt.Errorf("the connection of the service %d ended: %+v, %w", i, c.last, c.err))
		default:
		}
	}
	return r, over()
}

// othersEvents is the filters of who wants the events of all but the attacker.
func othersEvents() (out []string) {
	for i := range worstOthers {
		out = append(out, fmt.Sprintf("devices/dev-%d/events/#", i))
	}
	return out
}

// service connects a client of an operator, who may receive all events.
func (w *worstCase) service(ctx context.Context, suffix string, filters []string, on func(*message)) (*client, error) {
	h := w.p.house
	password, err := h.assertion()
	if err != nil {
		return nil, err
	}
	c, err := dial(ctx, h.place.MQTTS, h.tls, string(h.place.Operator)+"/"+suffix, password, on)
	if err != nil {
		return nil, err
	}
	for _, f := range filters {
		if err := c.subscribe(f, 1); err != nil {
			gone(c)
			return nil, err
		}
	}
	return c, nil
}

// fleet connects the others, who obey.
func (w *worstCase) fleet(ctx context.Context, r *worstTurn) ([]*client, error) {
	fleet := make([]*client, 0, worstOthers)
	for i := range worstOthers {
		d := &w.p.house.devices[i]
		up := &packet.Publish{Topic: fmt.Sprintf("devices/%s/receipts", d.id), QoS: 1}
		var c *client
		ready := make(chan struct{})
		c, err := dial(ctx, w.p.house.place.MQTTS, w.p.house.tls, string(d.id), w.token(i), func(m *message) {
			<-ready
			receipt, err := d.obey(string(m.Payload))
			if err != nil {
				r.missed(true, err)
				return
			}
			up.ID = 60001 + up.ID%5000 // those of events are below
			up.Payload = []byte(receipt)
			_ = c.send(up) // a lost one is missed where it was ordered
		})
		close(ready)
		if err != nil {
			return fleet, err
		}
		fleet = append(fleet, c)
		if err := c.subscribe(fmt.Sprintf("devices/%s/commands", d.id), 1); err != nil {
			return fleet, err
		}
		go func() { // nobody waits for PUBACKs
			for {
				select {
				case <-c.acks:
				case <-c.end:
					return
				}
			}
		}()
	}
	return fleet, nil
}

func (w *worstCase) token(i int) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.p.house.devices[i].token
}

// renew gets a newer access token for the i-th device.
func (w *worstCase) renew(ctx context.Context, i int) error {
	h := w.p.house
	assertion, err := token.SignAssertion(h.devices[i].signer, h.devices[i].id, h.place.Issuer, time.Now(), token.AssertionLife)
	if err != nil {
		return err
	}
	form := url.Values{
		"grant_type": {"client_credentials"}, "client_assertion": {assertion},
		"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.place.URL+"/oauth/token", strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	b, err := answer(w.hc, req)
	if err != nil {
		return err
	}
	var got struct {
		Token string `json:"access_token"`
	}
	if err := json.Unmarshal(b, &got); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	h.devices[i].token = got.Token
	return nil
}

// attack starts one turn of the attacker and returns once it has begun; over waits for its end.
func (w *worstCase) attack(ctx context.Context, number int) (over func() error, err error) {
	h := w.p.house
	id := h.devices[len(h.devices)-1].id
	raw, err := json.Marshal(&attack{
		ID: id, Folder: filepath.Join(w.dir, "devices", string(id)), Issuer: h.place.Issuer, URL: h.place.URL, MQTTS: h.place.MQTTS, CA: h.place.CA,
		Turn: number, Seconds: float64(w.seconds + 2),
	})
	if err != nil {
		return nil, err
	}
	path := filepath.Join(w.dir, "attack.json")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, time.Duration(w.seconds)*time.Second+2*time.Minute, errors.New("the attacker did not end within two minutes of its turn"))
	c := exec.CommandContext(ctx, "nice", "-n", "19", self, "-attack", path)
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	if err != nil {
		cancel()
		return nil, err
	}
	if err := c.Start(); err != nil {
		cancel()
		return nil, err
	}
	lines := bufio.NewReader(out)
	over = func() error {
		defer cancel()
		rest, rerr := io.ReadAll(lines)
		if err := errors.Join(rerr, c.Wait()); err != nil {
			return errors.Join(context.Cause(ctx), err)
		}
		var done []attackDid
		if err := json.Unmarshal(bytes.TrimSpace(rest), &done); err != nil {
			return err
		}
		if w.attacker == nil {
			w.attacker = make([]attackDid, len(done))
		}
		for i, d := range done {
			sum := &w.attacker[i]
			sum.Name = d.Name
			sum.Did[0] += d.Did[0]
			if sum.Did[1] += d.Did[1]; d.Last != "" {
				sum.Last = d.Last
			}
		}
		return nil
	}
	if line, err := lines.ReadString('\n'); err != nil || line != "begins\n" {
		return nil, errors.Join(fmt.Errorf("the attacker says %q", line), err, over())
	}
	return over, nil
}
