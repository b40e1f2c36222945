package accesslog

import "regexp"

// knownOperator is what Envoy's releases take of an operator.
type knownOperator struct {
	since       uint32 // the minor release that has it
	takes       params
	paramsSince uint32         // that takes parameters, if it is a later one
	lengthSince uint32         // that takes a length; 0: none does
	values      *regexp.Regexp // of parameters; nil: any
}

// params says whether an operator has parameters.
type params uint8

const (
	noParams params = iota
	mayHaveParams
	needsParams
)

// The parameters that Envoy takes.
var (
	headerForms   = regexp.MustCompile(`^[^?\s]+(\?[^?\s]*)?$`)
	maskForms     = regexp.MustCompile(`^([0-9]|[12][0-9]|3[0-2])$`)
	statusForms   = regexp.MustCompile(`^(CAMEL_STRING|SNAKE_STRING|NUMBER)$`)
	durations     = regexp.MustCompile(`^[A-Za-z0-9_.]+:[A-Za-z0-9_.]+:(ms|us|ns)$`)
	pathForms     = regexp.MustCompile(`^(WQ|NQ)(:(ORIG|PATH|ORIG_OR_PATH))?$`)
	queryForms    = regexp.MustCompile(`^(ORIG|DECODED)$`)
	nameForms     = regexp.MustCompile(`^(SNI_ONLY|SNI_FIRST|HOST_FIRST)(:(ORIG|HOST|ORIG_OR_HOST))?$`)
	detailForms   = regexp.MustCompile(`^ALLOW_WHITESPACES$`)
	stateForms    = regexp.MustCompile(`^[^:]+(:(PLAIN|TYPED|FIELD:[^:]+))?$`)
	metadataForms = regexp.MustCompile(`^(DYNAMIC|CLUSTER|ROUTE|UPSTREAM_HOST|LISTENER|LISTENER_FILTER_CHAIN|VIRTUAL_HOST)(:.+)?$`)
)

// operators are those of Envoy's log formats
// (https://www.envoyproxy.io/docs/envoy/latest/configuration/advanced/substitution_formatter).
// From 1.36 on, every release was tried with every one of them. None before that
// was at hand: 22 and 32 stand for what the version history says, and where that
// leaves a doubt, a later release is written here.
var logOperators = map[string]knownOperator{
	"ACCESS_LOG_TYPE":                {since: 32, takes: noParams},
	"BYTES_RECEIVED":                 {since: 22, takes: noParams},
	"BYTES_RETRANSMITTED":            {since: 32, takes: noParams},
	"BYTES_SENT":                     {since: 22, takes: noParams},
	"CEL":                            {since: 32, takes: needsParams, lengthSince: 32},
	"CLUSTER_METADATA":               {since: 22, takes: needsParams},
	"COALESCE":                       {since: 37, takes: needsParams, lengthSince: 37},
	"COMMON_DURATION":                {since: 32, takes: needsParams, values: durations},
	"CONNECTION_ID":                  {since: 22, takes: noParams},
	"CONNECTION_TERMINATION_DETAILS": {since: 22, takes: noParams},
	"CUSTOM_FLAGS":                   {since: 36, takes: noParams},
	"DOWNSTREAM_CX_RTT":              {since: 40, takes: noParams},
	"DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED": {since: 36, takes: noParams},
	"DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_SENT":     {since: 36, takes: noParams},
	"DOWNSTREAM_DETECTED_CLOSE_TYPE":                {since: 38, takes: noParams},
	"DOWNSTREAM_DIRECT_LOCAL_ADDRESS":               {since: 36, takes: noParams},
	"DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID":   {since: 37, takes: noParams},
	"DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT":  {since: 36, takes: mayHaveParams, paramsSince: 38, values: maskForms},
	"DOWNSTREAM_DIRECT_LOCAL_PORT":                  {since: 36, takes: noParams},
	"DOWNSTREAM_DIRECT_REMOTE_ADDRESS":              {since: 22, takes: noParams},
	"DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT": {since: 22, takes: mayHaveParams, paramsSince: 38, values: maskForms},
	"DOWNSTREAM_DIRECT_REMOTE_PORT":                 {since: 22, takes: noParams},
	"DOWNSTREAM_HANDSHAKE_DURATION":                 {since: 32, takes: noParams},
	"DOWNSTREAM_HEADER_BYTES_RECEIVED":              {since: 22, takes: noParams},
	"DOWNSTREAM_HEADER_BYTES_SENT":                  {since: 22, takes: noParams},
	"DOWNSTREAM_LOCAL_ADDRESS":                      {since: 22, takes: noParams},
	"DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID":          {since: 37, takes: noParams},
	"DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT":         {since: 22, takes: mayHaveParams, paramsSince: 38, values: maskForms},
	"DOWNSTREAM_LOCAL_CLOSE_REASON":                 {since: 38, takes: noParams},
	"DOWNSTREAM_LOCAL_DNS_SAN":                      {since: 36, takes: noParams},
	"DOWNSTREAM_LOCAL_EMAIL_SAN":                    {since: 36, takes: noParams},
	"DOWNSTREAM_LOCAL_IP_SAN":                       {since: 36, takes: noParams},
	"DOWNSTREAM_LOCAL_OTHERNAME_SAN":                {since: 36, takes: noParams},
	"DOWNSTREAM_LOCAL_PORT":                         {since: 22, takes: noParams},
	"DOWNSTREAM_LOCAL_SUBJECT":                      {since: 22, takes: noParams},
	"DOWNSTREAM_LOCAL_URI_SAN":                      {since: 22, takes: noParams},
	"DOWNSTREAM_PEER_CERT":                          {since: 22, takes: noParams},
	"DOWNSTREAM_PEER_CERT_V_END":                    {since: 22, takes: mayHaveParams},
	"DOWNSTREAM_PEER_CERT_V_START":                  {since: 22, takes: mayHaveParams},
	"DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_1":          {since: 36, takes: noParams},
	"DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256":        {since: 36, takes: noParams},
	"DOWNSTREAM_PEER_CHAIN_SERIALS":                 {since: 36, takes: noParams},
	"DOWNSTREAM_PEER_DNS_SAN":                       {since: 36, takes: noParams},
	"DOWNSTREAM_PEER_EMAIL_SAN":                     {since: 36, takes: noParams},
	"DOWNSTREAM_PEER_FINGERPRINT_1":                 {since: 22, takes: noParams},
	"DOWNSTREAM_PEER_FINGERPRINT_256":               {since: 22, takes: noParams},
	"DOWNSTREAM_PEER_IP_SAN":                        {since: 36, takes: noParams},
	"DOWNSTREAM_PEER_ISSUER":                        {since: 22, takes: noParams},
	"DOWNSTREAM_PEER_ISSUER_FINGERPRINT_256":        {since: 38, takes: noParams},
	"DOWNSTREAM_PEER_ISSUER_SERIAL":                 {since: 38, takes: noParams},
	"DOWNSTREAM_PEER_OTHERNAME_SAN":                 {since: 36, takes: noParams},
	"DOWNSTREAM_PEER_SERIAL":                        {since: 22, takes: noParams},
	"DOWNSTREAM_PEER_SUBJECT":                       {since: 22, takes: noParams},
	"DOWNSTREAM_PEER_URI_SAN":                       {since: 22, takes: noParams},
	"DOWNSTREAM_REMOTE_ADDRESS":                     {since: 22, takes: noParams},
	"DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT":        {since: 22, takes: mayHaveParams, paramsSince: 38, values: maskForms},
	"DOWNSTREAM_REMOTE_PORT":                        {since: 22, takes: noParams},
	"DOWNSTREAM_TLS_CIPHER":                         {since: 22, takes: noParams},
	"DOWNSTREAM_TLS_GROUP":                          {since: 39, takes: noParams},
	"DOWNSTREAM_TLS_SESSION_ID":                     {since: 22, takes: noParams},
	"DOWNSTREAM_TLS_VERSION":                        {since: 22, takes: noParams},
	"DOWNSTREAM_TRANSPORT_FAILURE_REASON":           {since: 32, takes: noParams},
	"DOWNSTREAM_WIRE_BYTES_RECEIVED":                {since: 22, takes: noParams},
	"DOWNSTREAM_WIRE_BYTES_SENT":                    {since: 22, takes: noParams},
	"DURATION":                                      {since: 22, takes: noParams},
	"DYNAMIC_METADATA":                              {since: 22, takes: needsParams, lengthSince: 37},
	"EMIT_TIME":                                     {since: 32, takes: mayHaveParams},
	"EMIT_TIME_LOCAL":                               {since: 36, takes: mayHaveParams},
	"ENVIRONMENT":                                   {since: 32, takes: needsParams, lengthSince: 32},
	"FILTER_CHAIN_NAME":                             {since: 22, takes: noParams},
	"FILTER_STATE":                                  {since: 22, takes: needsParams, lengthSince: 22, values: stateForms},
	"GRPC_STATUS":                                   {since: 22, takes: mayHaveParams, values: statusForms},
	"GRPC_STATUS_NUMBER":                            {since: 32, takes: noParams},
	"HOSTNAME":                                      {since: 22, takes: noParams},
	"LOCAL_REPLY_BODY":                              {since: 22, takes: noParams},
	"METADATA":                                      {since: 32, takes: needsParams, lengthSince: 32, values: metadataForms},
	"PACKETS_RETRANSMITTED":                         {since: 32, takes: noParams},
	"PATH":                                          {since: 36, takes: mayHaveParams, lengthSince: 36, values: pathForms},
	"PROTOCOL":                                      {since: 22, takes: noParams},
	"QUERY_PARAM":                                   {since: 36, takes: needsParams, lengthSince: 36},
	"QUERY_PARAMS":                                  {since: 38, takes: mayHaveParams, lengthSince: 38, values: queryForms},
	"REQ":                                           {since: 22, takes: needsParams, lengthSince: 22, values: headerForms},
	"REQUESTED_SERVER_NAME":                         {since: 22, takes: mayHaveParams, paramsSince: 37, values: nameForms},
	"REQUEST_DURATION":                              {since: 22, takes: noParams},
	"REQUEST_HEADER":                                {since: 37, takes: needsParams, lengthSince: 37, values: headerForms},
	"REQUEST_HEADERS_BYTES":                         {since: 22, takes: noParams},
	"REQUEST_TX_DURATION":                           {since: 22, takes: noParams},
	"REQ_WITHOUT_QUERY":                             {since: 22, takes: mayHaveParams, lengthSince: 22, values: headerForms},
	"RESP":                                          {since: 22, takes: needsParams, lengthSince: 22, values: headerForms},
	"RESPONSE_CODE":                                 {since: 22, takes: noParams},
	"RESPONSE_CODE_DETAILS":                         {since: 22, takes: mayHaveParams, values: detailForms},
	"RESPONSE_DURATION":                             {since: 22, takes: noParams},
	"RESPONSE_FLAGS":                                {since: 22, takes: noParams},
	"RESPONSE_FLAGS_LONG":                           {since: 32, takes: noParams},
	"RESPONSE_HEADER":                               {since: 37, takes: needsParams, lengthSince: 37, values: headerForms},
	"RESPONSE_HEADERS_BYTES":                        {since: 22, takes: noParams},
	"RESPONSE_TRAILER":                              {since: 37, takes: needsParams, lengthSince: 37, values: headerForms},
	"RESPONSE_TRAILERS_BYTES":                       {since: 22, takes: noParams},
	"RESPONSE_TX_DURATION":                          {since: 22, takes: noParams},
	"ROUNDTRIP_DURATION":                            {since: 32, takes: noParams},
	"ROUTE_NAME":                                    {since: 22, takes: noParams},
	"SPAN_ID":                                       {since: 38, takes: noParams},
	"START_TIME":                                    {since: 22, takes: mayHaveParams},
	"START_TIME_LOCAL":                              {since: 36, takes: mayHaveParams},
	"STREAM_ID":                                     {since: 32, takes: noParams},
	"TLS_JA3_FINGERPRINT":                           {since: 36, takes: noParams},
	"TLS_JA4_FINGERPRINT":                           {since: 36, takes: noParams},
	"TRACE_ID":                                      {since: 36, takes: noParams},
	"TRAILER":                                       {since: 22, takes: needsParams, lengthSince: 22, values: headerForms},
	"UNIQUE_ID":                                     {since: 36, takes: noParams},
	"UPSTREAM_CLUSTER":                              {since: 22, takes: noParams},
	"UPSTREAM_CLUSTER_RAW":                          {since: 32, takes: noParams},
	"UPSTREAM_CONNECTION_ID":                        {since: 32, takes: noParams},
	"UPSTREAM_CONNECTION_IDS_ATTEMPTED":             {since: 38, takes: noParams},
	"UPSTREAM_CONNECTION_POOL_READY_DURATION":       {since: 32, takes: noParams},
	"UPSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED":   {since: 36, takes: noParams},
	"UPSTREAM_DECOMPRESSED_HEADER_BYTES_SENT":       {since: 36, takes: noParams},
	"UPSTREAM_DETECTED_CLOSE_TYPE":                  {since: 38, takes: noParams},
	"UPSTREAM_FILTER_STATE":                         {since: 32, takes: needsParams, lengthSince: 32, values: stateForms},
	"UPSTREAM_HEADER_BYTES_RECEIVED":                {since: 22, takes: noParams},
	"UPSTREAM_HEADER_BYTES_SENT":                    {since: 22, takes: noParams},
	"UPSTREAM_HOST":                                 {since: 22, takes: noParams},
	"UPSTREAM_HOSTS_ATTEMPTED":                      {since: 38, takes: noParams},
	"UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT":         {since: 38, takes: noParams},
	"UPSTREAM_HOST_NAME":                            {since: 36, takes: noParams},
	"UPSTREAM_HOST_NAMES_ATTEMPTED":                 {since: 38, takes: noParams},
	"UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT":    {since: 38, takes: noParams},
	"UPSTREAM_HOST_NAME_WITHOUT_PORT":               {since: 36, takes: noParams},
	"UPSTREAM_LOCAL_ADDRESS":                        {since: 22, takes: noParams},
	"UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT":           {since: 32, takes: mayHaveParams, paramsSince: 38, values: maskForms},
	"UPSTREAM_LOCAL_CLOSE_REASON":                   {since: 38, takes: noParams},
	"UPSTREAM_LOCAL_DNS_SAN":                        {since: 36, takes: noParams},
	"UPSTREAM_LOCAL_IP_SAN":                         {since: 36, takes: noParams},
	"UPSTREAM_LOCAL_PORT":                           {since: 32, takes: noParams},
	"UPSTREAM_LOCAL_URI_SAN":                        {since: 36, takes: noParams},
	"UPSTREAM_METADATA":                             {since: 32, takes: needsParams},
	"UPSTREAM_PEER_CERT":                            {since: 32, takes: noParams},
	"UPSTREAM_PEER_CERT_V_END":                      {since: 32, takes: mayHaveParams},
	"UPSTREAM_PEER_CERT_V_START":                    {since: 32, takes: mayHaveParams},
	"UPSTREAM_PEER_DNS_SAN":                         {since: 36, takes: noParams},
	"UPSTREAM_PEER_IP_SAN":                          {since: 36, takes: noParams},
	"UPSTREAM_PEER_ISSUER":                          {since: 32, takes: noParams},
	"UPSTREAM_PEER_SUBJECT":                         {since: 32, takes: noParams},
	"UPSTREAM_PEER_URI_SAN":                         {since: 36, takes: noParams},
	"UPSTREAM_PROTOCOL":                             {since: 32, takes: noParams},
	"UPSTREAM_REMOTE_ADDRESS":                       {since: 32, takes: noParams},
	"UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID":           {since: 37, takes: noParams},
	"UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT":          {since: 32, takes: mayHaveParams, paramsSince: 38, values: maskForms},
	"UPSTREAM_REMOTE_PORT":                          {since: 32, takes: noParams},
	"UPSTREAM_REQUEST_ATTEMPT_COUNT":                {since: 22, takes: noParams},
	"UPSTREAM_SERVER_NAME":                          {since: 39, takes: noParams},
	"UPSTREAM_TLS_CIPHER":                           {since: 32, takes: noParams},
	"UPSTREAM_TLS_GROUP":                            {since: 39, takes: noParams},
	"UPSTREAM_TLS_SESSION_ID":                       {since: 32, takes: noParams},
	"UPSTREAM_TLS_VERSION":                          {since: 32, takes: noParams},
	"UPSTREAM_TRANSPORT_FAILURE_REASON":             {since: 22, takes: noParams},
	"UPSTREAM_WIRE_BYTES_RECEIVED":                  {since: 22, takes: noParams},
	"UPSTREAM_WIRE_BYTES_SENT":                      {since: 22, takes: noParams},
	"VIRTUAL_CLUSTER_NAME":                          {since: 32, takes: noParams},
}
