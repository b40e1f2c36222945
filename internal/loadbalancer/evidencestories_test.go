package loadbalancer

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// flow is connections that begin one after the other, from one address to the Envoys of some Ushers.
type flow struct {
	begin, end float64 // minutes
	address    string
	every      float64 // seconds
	header     bool
	life       float64 // seconds
	ushers     string  // the Ushers whose Envoys get them; empty: all
	untrusted  bool    // the address is outside of trusted_cidrs
	stray      bool    // a client that connects past the load balancer: it may be refused
}

// The addresses of the load balancer, and of a client that connects past it.
const (
	balancerA = "10.0.3.7"
	balancerB = "10.0.3.8"
	client    = "10.244.1.5"
)

// change is a change of the Service at some minute; nil: the API server refuses.
type change struct {
	minute  float64
	service *corev1.Service
}

// process is one Usher that runs for some time.
type process struct {
	name       string
	begin, end float64 // minutes; end 0: the end of the story
}

// story is what happens to a listener over time.
type story struct {
	name       string
	changes    []change
	restricted bool
	until      float64        // the minute in which trusted_cidrs is removed; 0: never
	grace      *time.Duration // nil: ten minutes
	ushers     []process      // none: one, which runs all the time
	record     bool
	flows      []flow
	end        float64  // minute
	want       []string // the modes: "60m0s permissive", or with several Ushers "60m0s a permissive"
	maxLost    int      // connections through the load balancer that may be refused
}

// on is a Service that switches headers on at some minute.
func on(minute float64) []change {
	return []change{{0, service("", 0)}, {minute, service("true", minute)}}
}

var stories = []story{
	{
		name: "the cloud follows within the grace period, and it ends early", changes: on(60), end: 80,
		flows: []flow{{begin: 60, end: 63, address: balancerA, every: 1}, {begin: 63, end: 80, address: balancerA, every: 1, header: true}},
		want:  []string{"0s off", "1h0m0s permissive", "1h8m1s strict"},
	},
	{
		name: "the grace period ends early, and a part of the cloud follows later", changes: on(60), end: 80,
		flows: []flow{
			{begin: 60, end: 80, address: balancerA, every: 1, header: true},
			{begin: 65.5, end: 66.5, address: balancerB, every: 10},
			{begin: 66.5, end: 80, address: balancerB, every: 10, header: true},
		},
		want:    []string{"0s off", "1h0m0s permissive", "1h5m1s strict", "1h5m31s permissive", "1h10m0s strict"},
		maxLost: 1,
	},
	{
		name: "few connections do not end the grace period", changes: on(60), end: 80,
		flows: []flow{{begin: 60, end: 80, address: balancerA, every: 20, header: true}},
		want:  []string{"0s off", "1h0m0s permissive", "1h10m0s strict"},
	},
	{
		name: "the cloud ignores the annotation", changes: on(60), end: 100,
		flows: []flow{{begin: 58, end: 100, address: balancerA, every: 1}},
		want:  []string{"0s off", "1h0m0s permissive"},
	},
	{
		name: "the cloud follows after the grace period", changes: on(60), end: 90,
		flows: []flow{
			{begin: 60, end: 80, address: balancerA, every: 1},
			{begin: 80, end: 90, address: balancerA, every: 1, header: true},
			{begin: 84, end: 86, address: client, every: 5, stray: true}, // which does not change the mode again
		},
		want: []string{"0s off", "1h0m0s permissive", "1h22m1s strict"},
	},
	{
		name: "the cloud follows within a short grace period", changes: on(60), end: 62, grace: new(10 * time.Second),
		flows: []flow{
			{begin: 60, end: 60.05, address: balancerA, every: 1},
			{begin: 60.05, end: 62, address: balancerA, every: 1, header: true},
		},
		want: []string{"0s off", "1h0m0s permissive", "1h0m10s strict"},
	},
	{
		name: "the cloud follows after a short grace period, and once more", changes: on(60), end: 70, grace: new(10 * time.Second),
		flows: []flow{
			{begin: 60, end: 61, address: balancerA, every: 1},
			{begin: 61, end: 63, address: balancerA, every: 1, header: true},
			{begin: 63, end: 64, address: balancerA, every: 1},
			{begin: 64, end: 65, address: balancerA, every: 1, header: true},
			{begin: 65, end: 66, address: balancerA, every: 1},
			{begin: 66, end: 70, address: balancerA, every: 1, header: true},
		},
		want: []string{
			"0s off", "1h0m0s permissive", "1h1m6s strict", "1h3m1s permissive", "1h4m4s strict", "1h5m1s permissive", "1h6m9s strict",
		},
		maxLost: 2,
	},
	{
		name: "without a grace period, the cloud follows a minute later", changes: on(60), end: 64, grace: new(time.Duration(0)),
		flows: []flow{
			{begin: 60, end: 61, address: balancerA, every: 1},
			{begin: 61, end: 64, address: balancerA, every: 1, header: true},
		},
		want:    []string{"0s off", "1h0m0s strict", "1h0m2s permissive", "1h1m6s strict"},
		maxLost: 2,
	},
	{
		name: "one of two balancers ignores it", changes: on(60), end: 90,
		flows: []flow{{begin: 60, end: 90, address: balancerA, every: 1, header: true}, {begin: 50, end: 90, address: balancerB, every: 9}},
		want:  []string{"0s off", "1h0m0s permissive"},
	},
	{
		name: "the grace period ends without connections, and the first have no header", changes: on(60), end: 90,
		flows:   []flow{{begin: 80, end: 90, address: balancerA, every: 5}},
		want:    []string{"0s off", "1h0m0s permissive", "1h10m0s strict", "1h20m1s permissive"},
		maxLost: 1,
	},
	{
		name: "headers stop, and come again", changes: on(60), end: 100,
		flows: []flow{
			{begin: 60, end: 80, address: balancerA, every: 1, header: true},
			{begin: 80, end: 90, address: balancerA, every: 1},
			{begin: 90, end: 100, address: balancerA, every: 1, header: true},
		},
		want:    []string{"0s off", "1h0m0s permissive", "1h5m1s strict", "1h20m11s permissive", "1h32m1s strict"},
		maxLost: 12,
	},
	{
		name: "headers stop on a listener with few connections", changes: on(60), end: 120,
		flows: []flow{
			{begin: 60, end: 80, address: balancerA, every: 30, header: true},
			{begin: 80, end: 120, address: balancerA, every: 30},
		},
		want:    []string{"0s off", "1h0m0s permissive", "1h10m0s strict", "1h20m31s permissive"},
		maxLost: 3,
	},
	{
		name: "headers stop, and connections that began with one still end", changes: on(60), end: 90,
		flows: []flow{
			{begin: 60, end: 80, address: balancerA, every: 1, header: true},
			{begin: 60, end: 80, address: balancerA, every: 1, header: true, life: 300},
			{begin: 80, end: 90, address: balancerA, every: 1},
		},
		want:    []string{"0s off", "1h0m0s permissive", "1h5m1s strict", "1h20m10s permissive"},
		maxLost: 12,
	},
	{
		name: "a client connects past the balancer", changes: on(60), end: 90,
		flows: []flow{
			{begin: 60, end: 90, address: balancerA, every: 1, header: true},
			{begin: 71, end: 80, address: client, every: 2, stray: true},
		},
		want: []string{"0s off", "1h0m0s permissive", "1h5m1s strict"},
	},
	{
		name: "a client connects past the balancer, behind which connections are long", changes: on(60), end: 90,
		flows: []flow{
			{begin: 60, end: 90, address: balancerA, every: 1, header: true, life: 120},
			{begin: 71, end: 80, address: client, every: 2, stray: true},
		},
		want: []string{"0s off", "1h0m0s permissive", "1h7m0s strict"},
	},
	{
		name: "one of two balancers stops", changes: on(60), end: 75,
		flows: []flow{
			{begin: 60, end: 75, address: balancerA, every: 1, header: true},
			{begin: 60, end: 70, address: balancerB, every: 1, header: true},
			{begin: 70, end: 75, address: balancerB, every: 1},
		},
		want:    []string{"0s off", "1h0m0s permissive", "1h5m1s strict"},
		maxLost: 300,
	},
	{
		name: "one of two balancers in trusted_cidrs stops", changes: on(60), end: 75, restricted: true,
		flows: []flow{
			{begin: 60, end: 75, address: balancerA, every: 1, header: true},
			{begin: 60, end: 72, address: balancerB, every: 1, header: true},
			{begin: 72, end: 75, address: balancerB, every: 1},
		},
		want:    []string{"0s off", "1h0m0s permissive", "1h5m1s strict", "1h12m1s permissive"},
		maxLost: 1,
	},
	{
		name: "untrusted clients count for nothing", changes: on(60), end: 90, restricted: true,
		flows: []flow{
			{begin: 60, end: 90, address: balancerA, every: 1, header: true},
			{begin: 60, end: 90, address: client, every: 1, untrusted: true, stray: true},
		},
		want: []string{"0s off", "1h0m0s permissive", "1h5m1s strict"},
	},
	{
		name: "trusted_cidrs lacks the balancer", changes: on(60), end: 90, restricted: true,
		flows: []flow{
			{begin: 65, end: 76, address: balancerA, every: 1, header: true, untrusted: true},
			{begin: 78, end: 80, address: balancerA, every: 1, header: true},
		},
		want: []string{"0s off", "1h0m0s permissive", "1h10m0s strict"},
	},
	{
		name: "a balancer without headers, and a client that writes its own", changes: on(60), end: 140,
		flows: []flow{
			{begin: 60, end: 80, address: balancerA, every: 5},
			{begin: 80, end: 140, address: balancerA, every: 10, header: true, stray: true},
			{begin: 83, end: 140, address: balancerA, every: 240}, // few enough to be overlooked for a while
		},
		want: []string{
			"0s off", "1h0m0s permissive", "1h22m1s strict", "1h24m1s permissive",
			"1h26m1s strict", "1h28m1s permissive", "1h40m0s strict", "1h44m1s permissive",
		},
		maxLost: 4,
	},
	{
		name: "headers that the Service does not switch on", changes: []change{{0, service("", 0)}}, end: 30,
		flows: []flow{{begin: 5, end: 12, address: balancerA, every: 1, header: true, stray: true}},
		want:  []string{"0s off"},
	},
	{
		name:    "headers that the Service does not switch on, from trusted_cidrs: they begin, stop, and begin again",
		changes: []change{{0, service("", 0)}}, end: 24, restricted: true,
		flows: []flow{
			{begin: 0, end: 3, address: balancerA, every: 2},
			{begin: 3, end: 6, address: balancerA, every: 2, header: true},
			{begin: 6, end: 10, address: balancerA, every: 2},
			{begin: 10, end: 12, address: balancerA, every: 2, header: true},
			{begin: 12, end: 15, address: balancerA, every: 2},
			{begin: 15, end: 17, address: balancerA, every: 2, header: true},
			{begin: 17, end: 24, address: balancerA, every: 2},
		},
		want: []string{
			"0s off", "4m1s permissive", "7m58s off", "11m1s permissive", "13m58s off", "16m1s permissive", "20m58s off",
		},
		maxLost: 93,
	},
	{
		name:    "headers that the Service does not switch on, from trusted_cidrs, on a new listener",
		changes: []change{{0, service("", 0)}}, end: 20, restricted: true,
		flows: []flow{
			{begin: 5, end: 20, address: balancerA, every: 1, header: true},
			{begin: 5, end: 20, address: client, every: 1, header: true, untrusted: true, stray: true},
		},
		want:    []string{"0s off", "5m5s permissive"},
		maxLost: 6,
	},
	{
		name:    "headers that the Service does not switch on, from others than trusted_cidrs",
		changes: []change{{0, service("", 0)}}, end: 20, restricted: true,
		flows: []flow{{begin: 5, end: 20, address: client, every: 1, header: true, untrusted: true, stray: true}},
		want:  []string{"0s off"},
	},
	{
		name:    "headers that the Service does not switch on, of one of two balancers",
		changes: []change{{0, service("", 0)}}, end: 40, restricted: true,
		flows: []flow{
			{begin: 0, end: 40, address: balancerA, every: 4},
			{begin: 0, end: 10, address: balancerB, every: 4},
			{begin: 10, end: 30, address: balancerB, every: 4, header: true},
		},
		want:    []string{"0s off", "11m1s permissive", "31m56s off"},
		maxLost: 16,
	},
	{
		name:    "clients that write headers behind a balancer that sends none",
		changes: []change{{0, service("", 0)}}, end: 40, restricted: true,
		flows: []flow{
			{begin: 0, end: 40, address: balancerA, every: 9},
			{begin: 5, end: 35, address: balancerA, every: 1, header: true, stray: true},
		},
		want: []string{"0s off"},
	},
	{
		name:    "trusted_cidrs is removed while headers come that the Service does not switch on",
		changes: []change{{0, service("", 0)}}, end: 20, restricted: true, until: 10,
		flows: []flow{{begin: 5, end: 20, address: balancerA, every: 5, header: true, stray: true}},
		want:  []string{"0s off", "5m21s permissive", "10m1s off"},
	},
	{
		name:    "the Service is corrected while headers come that it did not switch on",
		changes: on(10), end: 30, restricted: true,
		flows:   []flow{{begin: 5, end: 30, address: balancerA, every: 4, header: true}},
		want:    []string{"0s off", "5m17s permissive", "15m0s strict"},
		maxLost: 6,
	},
	{
		name: "headers are switched off in the Service, and go on from trusted_cidrs", restricted: true,
		changes: []change{{0, service("true", 0)}, {20, service("", 0)}}, end: 45,
		flows: []flow{{begin: 0, end: 40, address: balancerA, every: 4, header: true}, {begin: 40, end: 45, address: balancerA, every: 4}},
		want:  []string{"0s permissive", "6m37s strict", "20m0s permissive", "41m56s off"},
	},
	{
		name: "headers are switched off in the Service, and clients write their own", restricted: true,
		changes: []change{{0, service("true", 0)}, {2, service("", 0)}}, end: 14,
		flows: []flow{
			{begin: 0, end: 5, address: balancerA, every: 5, header: true, stray: true},
			{begin: 5, end: 14, address: balancerA, every: 9},
			{begin: 5, end: 14, address: balancerA, every: 5, header: true, stray: true},
		},
		want: []string{"0s permissive", "12m0s off"},
	},
	{
		name:    "headers are switched off in the Service, and go on, without trusted_cidrs",
		changes: []change{{0, service("true", 0)}, {2, service("", 0)}}, end: 14,
		flows: []flow{{begin: 0, end: 14, address: balancerA, every: 5, header: true, stray: true}},
		want:  []string{"0s permissive", "12m0s off"},
	},
	{
		name: "headers that the Service does not switch on begin and stop while the API server refuses", restricted: true,
		changes: []change{{0, service("", 0)}, {5, nil}, {30, service("", 0)}}, end: 35,
		flows: []flow{
			{begin: 0, end: 10, address: balancerA, every: 4},
			{begin: 10, end: 20, address: balancerA, every: 4, header: true},
			{begin: 20, end: 35, address: balancerA, every: 4},
		},
		want:    []string{"0s off", "11m1s permissive", "30m0s off"},
		maxLost: 16,
	},
	{
		name: "two Ushers share that headers come which the Service does not switch on, and one is killed", restricted: true, record: true,
		changes: []change{{0, service("", 0)}}, end: 26,
		ushers: []process{{"a", 0, 8}, {"b", 0, 0}, {"c", 9, 0}},
		flows: []flow{
			{begin: 1, end: 3, address: balancerA, every: 2},
			{begin: 3, end: 7, address: balancerA, every: 2, header: true, ushers: "a"},
			{begin: 7, end: 15, address: balancerA, every: 2, header: true, ushers: "b"},
			{begin: 10, end: 12, address: balancerA, every: 2, header: true, ushers: "c"},
			{begin: 12, end: 26, address: balancerA, every: 5, ushers: "c"},
			{begin: 15, end: 26, address: balancerA, every: 5, ushers: "b"},
		},
		want: []string{
			"0s a off", "0s b off", "4m1s a permissive", "4m30s b permissive", "9m0s c permissive", "21m58s b off", "21m58s c off",
		},
		maxLost: 31,
	},
	{
		name: "an Usher is killed without a record while headers come that the Service does not switch on", restricted: true,
		changes: []change{{0, service("", 0)}}, end: 20,
		ushers:  []process{{"a", 0, 10}, {"b", 11, 0}},
		flows:   []flow{{begin: 5, end: 20, address: balancerA, every: 4, header: true}},
		want:    []string{"0s a off", "5m17s a permissive", "11m0s b off", "11m17s b permissive"},
		maxLost: 12,
	},
	{
		name: "a port scanner is no load balancer", changes: []change{{0, service("", 0)}}, end: 30,
		flows: []flow{
			{begin: 5, end: 12, address: client, every: 200, header: true, stray: true},
			{begin: 20, end: 29, address: balancerA, every: 5},
			{begin: 21, end: 29, address: client, every: 20, header: true, stray: true},
		},
		want: []string{"0s off"},
	},
	{
		name: "headers stop while the API server refuses", end: 100,
		changes: []change{{0, service("true", 0)}, {60, nil}, {90, service("true", 0)}},
		flows: []flow{
			{begin: 0, end: 12, address: balancerA, every: 1, header: true},
			{begin: 55, end: 70, address: balancerA, every: 1, header: true},
			{begin: 70, end: 80, address: balancerA, every: 1},
			{begin: 80, end: 100, address: balancerA, every: 1, header: true},
		},
		want:    []string{"0s permissive", "5m1s strict", "1h10m11s permissive", "1h30m0s strict"},
		maxLost: 12,
	},
	{
		name: "headers are switched off while connections have none", changes: append(on(60), change{90, service("", 0)}), end: 110,
		flows: []flow{{begin: 65, end: 110, address: balancerA, every: 3}},
		want:  []string{"0s off", "1h0m0s permissive", "1h40m0s off"},
	},
	{
		name: "an Usher is killed, and the next one has the record", changes: on(60), end: 100, record: true,
		ushers: []process{{"a", 0, 75}, {"b", 76, 0}},
		flows:  []flow{{begin: 50, end: 100, address: balancerA, every: 1}},
		want:   []string{"0s a off", "1h0m0s a permissive", "1h16m0s b permissive"},
	},
	{
		name: "an Usher is killed, and the next one has no record", changes: on(60), end: 100,
		ushers:  []process{{"a", 0, 75}, {"b", 76, 0}},
		flows:   []flow{{begin: 50, end: 100, address: balancerA, every: 1}},
		want:    []string{"0s a off", "1h0m0s a permissive", "1h16m0s b strict", "1h16m10s b permissive"},
		maxLost: 11,
	},
	{
		name: "an Usher is restarted, and health checks come before headers", changes: on(60), end: 90, record: true,
		ushers: []process{{"a", 0, 75}, {"b", 76, 0}},
		flows: []flow{
			{begin: 60, end: 75, address: balancerA, every: 1, header: true},
			{begin: 77, end: 90, address: balancerA, every: 20, header: true},
			{begin: 76, end: 76.9, address: balancerA, every: 3, stray: true},
		},
		want: []string{"0s a off", "1h0m0s a permissive", "1h6m1s a strict", "1h16m0s b strict"},
	},
	{
		name: "two Ushers share what only one of them sees", changes: on(60), end: 100, record: true,
		ushers: []process{{"a", 0, 74}, {"b", 0, 0}},
		flows: []flow{
			{begin: 50, end: 71, address: balancerA, every: 1, ushers: "a"},
			{begin: 80, end: 100, address: balancerA, every: 1, header: true, ushers: "b"},
		},
		want: []string{
			"0s a off", "0s b off", "1h0m0s a permissive", "1h0m0s b permissive",
			"1h23m1s b strict",
		},
	},
	{
		name: "an Usher whose Envoys have no connections learns from another one", changes: on(60), end: 80, record: true,
		ushers:  []process{{"a", 0, 0}, {"b", 0, 0}},
		flows:   []flow{{begin: 75.2, end: 77, address: balancerA, every: 5, ushers: "a"}},
		maxLost: 1,
		want: []string{
			"0s a off", "0s b off", "1h0m0s a permissive", "1h0m0s b permissive", "1h10m0s a strict", "1h10m0s b strict",
			"1h15m16s a permissive", "1h15m30s b permissive",
		},
	},
	{
		name: "two Ushers see different connections", changes: on(60), end: 120, record: true,
		ushers: []process{{"a", 0, 0}, {"b", 0, 0}},
		flows: []flow{
			{begin: 50, end: 120, address: balancerA, every: 1, ushers: "a"},
			{begin: 60, end: 120, address: balancerA, every: 1, header: true, ushers: "b"},
		},
		want: []string{
			"0s a off", "0s b off", "1h0m0s a permissive", "1h0m0s b permissive",
		},
	},
}
