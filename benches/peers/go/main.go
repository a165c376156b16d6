// Go's net/rpc with gob, as a server and as a client that measures like the rest of the table.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"log"
	"math"
	"net"
	"net/rpc"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

func main() {
	log.SetFlags(0)
	args := os.Args[1:]
	switch {
	case len(args) == 1 && args[0] == "serve":
		serve()
	case len(args) == 7 && args[0] == "drive":
		drive(args[1], orderOf(args[2:]))
	case len(args) == 3 && args[0] == "hold":
		hold(args[1], number(args[2]))
	default:
		log.Fatal("serve | drive ADDR WORK IN_FLIGHT WARMUP_MS TIME_MS PIDS | hold ADDR N")
	}
}

// Bench is the service that every peer has.
type Bench struct{}

// Numbers are what a sum is called with.
type Numbers struct{ A, B int64 }

// Sum adds two numbers.
func (Bench) Sum(numbers Numbers, sum *int64) error {
	*sum = numbers.A + numbers.B
	return nil
}

// Echo answers with what it was sent.
func (Bench) Echo(body []byte, answer *[]byte) error {
	*answer = body
	return nil
}

// serve prints its address, then serves until it is killed.
func serve() {
	check(rpc.Register(Bench{}))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	fmt.Println(listener.Addr())
	rpc.Accept(listener)
}

// hold opens connections, makes one call on each, and keeps them until its input ends or has a
// line.
func hold(server string, connections int) {
	clients := make([]*rpc.Client, connections)
	for i := range clients {
		clients[i] = connect(server)
		sum(clients[i], 1, 2)
	}
	fmt.Println("held")
	bufio.NewReader(os.Stdin).ReadString('\n')
	// One that nothing refers to would be closed.
	for _, client := range clients {
		client.Close()
	}
}

// order is what one measurement is about: which calls, how many at a time, for how long.
type order struct {
	work         string
	inFlight     int
	warmUp, time time.Duration
	// The servers' processes, whose processor time counts too.
	servers []string
}

func orderOf(args []string) order {
	ms := func(text string) time.Duration { return time.Duration(number(text)) * time.Millisecond }
	pids := strings.FieldsFunc(args[4], func(char rune) bool { return char == ',' })
	return order{args[0], number(args[1]), ms(args[2]), ms(args[3]), pids}
}

// report is what was counted; the line that is printed.
type report struct {
	Calls   int     `json:"calls"`
	Seconds float64 `json:"seconds"`
	P50     float64 `json:"p50_us"`
	P99     float64 `json:"p99_us"`
	// Of client and servers together.
	CPU float64 `json:"cpu_s"`
}

// drive makes the calls, all on one connection, and prints what it counted.
func drive(server string, order order) {
	client := connect(server)
	var counting, stop atomic.Bool
	calls := make([]int, order.inFlight)
	latencies := make([][]uint32, order.inFlight)
	var workers sync.WaitGroup
	for i := 0; i < order.inFlight; i++ {
		workers.Add(1)
		go func(i int) {
			defer workers.Done()
			call := callOf(client, order.work, i)
			calls[i], latencies[i] = work(call, &counting, &stop)
		}(i)
	}
	time.Sleep(order.warmUp)
	cpu, start := order.cpu(), time.Now()
	counting.Store(true)
	time.Sleep(order.time)
	counting.Store(false)
	report := report{Seconds: time.Since(start).Seconds(), CPU: order.cpu() - cpu}
	stop.Store(true)
	workers.Wait()
	var all []uint32
	for i := range calls {
		report.Calls += calls[i]
		all = append(all, latencies[i]...)
	}
	sort.Slice(all, func(i, j int) bool { return all[i] < all[j] })
	report.P50, report.P99 = at(all, 0.5), at(all, 0.99)
	check(json.NewEncoder(os.Stdout).Encode(report))
}

// work calls until it is stopped; how many calls began and ended while they counted, and how many
// nanoseconds each of them took.
func work(call func(n int64), counting, stop *atomic.Bool) (int, []uint32) {
	latencies := make([]uint32, 0, 4096)
	made := 0
	for n := 1; !stop.Load(); n++ {
		counts := counting.Load()
		timed := counts
		var start time.Time
		if timed {
			start = time.Now()
		}
		call(int64(n))
		if counts && counting.Load() {
			made++
			if timed {
				nanos := time.Since(start).Nanoseconds()
				if nanos > math.MaxUint32 {
					nanos = math.MaxUint32
				}
				latencies = append(latencies, uint32(nanos))
			}
		}
	}
	return made, latencies
}

// callOf is the call that a worker makes, again and again.
func callOf(client *rpc.Client, work string, worker int) func(n int64) {
	lengths := map[string]int{"bytes": 16, "1k": 1024, "64k": 64 * 1024}
	length, echoes := lengths[work]
	if !echoes {
		return func(n int64) { sum(client, int64(worker), n) }
	}
	body := make([]byte, length)
	for i := range body {
		body[i] = 7
	}
	return func(int64) {
		var answer []byte
		check(client.Call("Bench.Echo", body, &answer))
		if len(answer) != length {
			log.Fatal("a wrong answer")
		}
	}
}

func sum(client *rpc.Client, a, b int64) {
	var sum int64
	check(client.Call("Bench.Sum", Numbers{a, b}, &sum))
	if sum != a+b {
		log.Fatal("a wrong answer")
	}
}

func connect(server string) *rpc.Client {
	client, err := rpc.Dial("tcp", server)
	check(err)
	return client
}

// cpu is the processor time that client and servers have used so far, in seconds.
func (order order) cpu() float64 {
	nanos := cpuOf("self")
	for _, pid := range order.servers {
		nanos += cpuOf(pid)
	}
	return float64(nanos) / 1e9
}

// cpuOf is the processor time of a process, by its threads, in nanoseconds.
func cpuOf(pid string) (nanos int64) {
	tasks, _ := filepath.Glob("/proc/" + pid + "/task/*/schedstat")
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if err != nil {
			// A thread that has just ended.
			continue
		}
		first, _, _ := strings.Cut(string(text), " ")
		own, _ := strconv.ParseInt(first, 10, 64)
		nanos += own
	}
	return nanos
}

// at is a quantile of sorted nanoseconds, in microseconds.
func at(sorted []uint32, quantile float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	last := float64(len(sorted) - 1)
	return float64(sorted[int(math.Round(last*quantile))]) / 1e3
}

func number(text string) int {
	number, err := strconv.Atoi(text)
	check(err)
	return number
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
